"""The Flask extension."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, create_engine, text

from wsgi_dbguard import DBGuard, GuardConfig, LeakWarning, SettingError
from wsgi_dbguard.contrib.flask import DBGuardExtension
from wsgi_dbguard.guards import guard_of
from wsgi_dbguard.lab.postgres import PostgreSQL

pytestmark = pytest.mark.usefixtures("every_engine")

APPLICATION = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from wsgi_dbguard.contrib.flask import DBGuardExtension

def create_app(database="first.db"):
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{database}"
    SQLAlchemy(app)
    DBGuardExtension(app)
    return app
"""


def flask(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`flask ARGUMENTS` in the directory of an application."""
    (directory / "notes.py").write_text(APPLICATION)
    command = [sys.executable, "-m", "flask", *arguments]
    return subprocess.run(
        command, cwd=directory, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )


def test_the_configuration_has_the_settings() -> None:
    app = Flask(__name__)
    app.config.update(DBGUARD_HOLD=10, DBGUARD_KEEPALIVE="20,5,3", DBGUARD_REPLAY="off")
    DBGuardExtension(app, replay="uncommitted")
    guard = app.extensions["dbguard"]
    assert isinstance(guard, DBGuard)
    assert guard.config == GuardConfig(hold=10.0, keepalive=(20, 5, 3), replay="uncommitted")


def test_flasks_own_environment_variables_have_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOLD": "10", "KEEPALIVE": "[20, 5, 3]", "IDLE_TIMEOUT": "null", "LEAKS": "warn"}.items():
        monkeypatch.setenv(f"FLASK_DBGUARD_{name}", value)
    app = Flask(__name__)
    app.config.from_prefixed_env()
    DBGuardExtension(app)
    expected = GuardConfig(hold=10.0, keepalive=(20, 5, 3), idle_timeout=None, leaks="warn")
    assert app.extensions["dbguard"].config == expected


def test_requests_of_a_test_client_are_guarded() -> None:
    app = Flask(__name__)
    extension = DBGuardExtension()
    extension.init_app(app)
    app.add_url_rule("/", "page", lambda: str("wsgi_dbguard.request" in request.environ))
    assert app.test_client().get("/").text == "True"
    assert app.extensions["dbguard"].stats()["requests"] == 1


def test_a_test_client_that_closes_its_responses_meets_what_a_request_leaves(postgres: PostgreSQL) -> None:
    engine = create_engine(postgres.url())
    app = Flask(__name__)
    DBGuardExtension(app, leaks="raise")
    left: list[Connection] = []
    app.add_url_rule("/", "page", lambda: left.append(engine.connect()) or "done")  # type: ignore[func-returns-value]
    try:
        with pytest.raises(LeakWarning, match="GET / left a connection"):
            app.test_client().get("/", buffered=True)
    finally:
        left.pop().close()
        engine.dispose()


def test_it_is_wrapped_once() -> None:
    app = Flask(__name__)
    extension = DBGuardExtension(app, hold=1.0)
    guard = app.wsgi_app
    extension.init_app(app)
    DBGuardExtension(app, hold=1.0)
    assert app.wsgi_app is guard
    with pytest.raises(SettingError, match="guarded with other settings already"):
        DBGuardExtension(app, hold=1.0, deadline=5.0)


@pytest.mark.parametrize(("key", "value"), [("DBGUARD_HOLT", 1), ("DBGUARD_HOLD", "soon")])
def test_a_wrong_setting_is_refused_and_the_application_left_as_it_was(key: str, value: object) -> None:
    app = Flask(__name__)
    before = app.wsgi_app
    app.config[key] = value
    with pytest.raises(SettingError, match=key):
        DBGuardExtension(app)
    assert app.wsgi_app == before
    assert "dbguard" not in app.extensions


@pytest.mark.parametrize("first", ["dbguard", "sqlalchemy"])
def test_engines_and_binds_of_flask_sqlalchemy_are_found(first: str) -> None:
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", SQLALCHEMY_BINDS={"reports": "sqlite://"}, DBGUARD_HOLD=4)
    database = SQLAlchemy()
    if first == "dbguard":
        DBGuardExtension(app)
    database.init_app(app)
    if first == "sqlalchemy":
        DBGuardExtension(app)
    with app.app_context():
        found = [guard_of(engine) for engine in database.engines.values()]
    assert [each is not None and each.config.hold for each in found] == [4.0, 4.0]


def test_an_engine_that_the_first_request_makes_is_found() -> None:
    app = Flask(__name__)
    made: list[Engine] = []
    DBGuardExtension(app, hold=4.0)

    @app.get("/")
    def page() -> str:
        made.append(create_engine("sqlite://"))
        with made[0].connect() as connection:
            return str(connection.scalar(text("select 7")))

    assert app.test_client().get("/").text == "7"
    found = guard_of(made[0])
    assert found is not None
    assert found.config.hold == 4.0
    made[0].dispose()


def test_flask_dbguard_doctor_looks_at_this_application(tmp_path: Path) -> None:
    done = flask(tmp_path, "--app", "notes.py:create_app('second.db')", "dbguard", "doctor", "--json", "--no-database")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    facts = json.loads(done.stdout)["facts"]["app"]
    assert facts["kind"] == "flask.app.Flask"
    assert facts["guard"] is not None
    (engine,) = facts["engines"]
    assert "second.db" in engine["url"]


def test_flask_dbguard_doctor_exits_as_the_doctor_does(tmp_path: Path) -> None:
    done = flask(tmp_path, "dbguard", "doctor", "--fail-on", "never", FLASK_APP="notes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(flask.app.Flask), wrapped by DBGuard" in " ".join(done.stdout.split())


def test_flask_refuses_a_wrong_setting_from_outside(tmp_path: Path) -> None:
    done = flask(tmp_path, "--app", "notes", "dbguard", "doctor", FLASK_DBGUARD_HOLT="1")
    assert done.returncode != 0
    assert "unknown setting DBGUARD_HOLT" in done.stderr


def test_flask_dbguard_doctor_cannot_look_at_what_has_no_name() -> None:
    app = Flask(__name__)
    DBGuardExtension(app)
    result = app.test_cli_runner().invoke(args=["dbguard", "doctor"])
    assert result.exit_code == 2
    assert "which application?" in result.output
