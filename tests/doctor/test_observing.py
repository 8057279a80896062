"""What is seen of an application that has been imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.pgbouncer import PgBouncer
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

from .conftest import Examine

EVERYTHING = """
import functools
import os
import threading

from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import NullPool

from wsgi_dbguard import DBGuard

engine = create_engine(os.environ["DATABASE_URL"], pool_size=3, max_overflow=1, pool_timeout=7, pool_recycle=90)
copy = engine.execution_options(stream_results=True)
other = create_engine(os.environ["DATABASE_URL"], poolclass=NullPool, isolation_level="AUTOCOMMIT")
scoped = scoped_session(sessionmaker(engine, expire_on_commit=False))
scoped.execute(text("SELECT 1"))


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}


class Keeper:
    session = Session(other)


def create_app():
    app = Flask(__name__)
    inner = Session(engine)
    app.add_url_rule("/", "index", lambda: inner.scalar(text("SELECT 1")))
    app.wsgi_app = functools.partial(DBGuard(app.wsgi_app, engine, hold=3).__call__)
    return app


def work(ready):
    mine = Session(engine)
    ready.set()
    threading.Event().wait()


ready = threading.Event()
threading.Thread(target=work, args=(ready,), daemon=True, name="worker").start()
ready.wait()
"""


def test_engines_connections_sessions_and_the_guard_are_found(site: Path, database: PostgreSQL, look: Examine) -> None:
    (site / "shop.py").write_text(EVERYTHING)
    facts, findings = look("shop:create_app()")
    app = facts.app
    assert app.kind == "flask.app.Flask"
    assert app.guard is not None
    assert app.guard["hold"] == 3.0
    first, second = app.engines  # a copy of an engine is the engine
    assert (first.pool, first.pool_size, first.max_overflow, first.limit) == ("QueuePool", 3, 1, 4)
    assert (first.pool_timeout, first.recycle, first.pre_ping) == (7.0, 90.0, False)
    assert first.guard is not None
    assert (second.pool, second.keeps, second.limit, second.guard) == ("NullPool", False, None, None)
    assert [(each.engine, each.place, each.in_use) for each in app.opened] == [(0, "shop.py:18 in <module>", True)]
    # Neither the one of scoped_session nor the thread's own.
    assert sorted(each.made_at for each in app.sessions) == [
        "shop.py:33 in Keeper",
        "shop.py:38 in create_app",
    ]
    (maker,) = app.makers
    assert (maker.splits, maker.routed, maker.expires) == (False, False, False)
    assert maker.made_at == "shop.py:17 in <module>"
    assert app.threads == ["worker"]
    assert (app.versioned, app.stale_at) == (1, ["shop.py:9"])
    assert [each.autocommit for each in facts.databases] == [False, True]
    assert {each.kind.id for each in findings} == {
        "DBG-S2-import",
        "DBG-S4-session",
        "DBG-POOL-null",
        "DBG-POOL-autocommit",
    }


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    try:
        server = MariaDB(settings={"wait_timeout": "900", "interactive_timeout": "1800"})
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.mark.slow
def test_mariadb_tells_its_limits_and_which_timeout_counts(
    site: Path, mariadb: MariaDB, look: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("URL", mariadb.url("pymysql"))
    (site / "wsgi.py").write_text(
        """
import os
from sqlalchemy import create_engine
short = create_engine(os.environ["URL"], pool_recycle=600, pool_pre_ping=True)
person = create_engine(os.environ["URL"], pool_recycle=7200, connect_args={"client_flag": 1 << 10})
unsafe = create_engine(os.environ["URL"] + "?autocommit=true", pool_recycle=600, pool_pre_ping=True)
def application(environ, start_response): ...
"""
    )
    facts, findings = look("wsgi")
    assert [(each.idle_limit, each.idle_limit_name) for each in facts.databases] == [
        (900.0, "wait_timeout"),
        (1800.0, "interactive_timeout"),
        (900.0, "wait_timeout"),
    ]
    assert {each.max_connections for each in facts.databases} == {200}
    assert facts.databases[0].version.startswith("MariaDB 1")
    assert [each.kind.id for each in findings] == ["DBG-S3-idle", "DBG-POOL-autocommit"]
    assert "pool_recycle = 7200; the server's interactive_timeout is 1800 s" in findings[0].seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "mode", "found"),
    [
        ("psycopg", "transaction", ["DBG-DB-prepared"]),
        ("psycopg2", "transaction", []),
        ("pg8000", "transaction", []),
        ("psycopg", "session", []),
    ],
)
def test_pgbouncer_is_noticed_and_prepared_statements_are_tried(
    driver: str,
    mode: str,
    found: list[str],
    site: Path,
    database: PostgreSQL,
    look: Examine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        pooler = PgBouncer(database, mode=mode)  # type: ignore[arg-type]
    except ServerMissing as missing:
        pytest.skip(str(missing))
    (site / "wsgi.py").write_text(
        """
import os
from sqlalchemy import create_engine
engine = create_engine(os.environ["URL"], pool_pre_ping=True)
def application(environ, start_response): ...
"""
    )
    with pooler:
        monkeypatch.setenv("URL", pooler.url(driver))
        facts, findings = look("wsgi")
    (asked,) = facts.databases
    assert (asked.error, asked.pooler) == ("", mode)
    assert [each.kind.id for each in findings] == found


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_with_one_server_connection_is_not_held(
    mode: str, site: Path, database: PostgreSQL, look: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who has the only one waits for somebody who waits for it: without a bound of its own, for all of `patience`.
    try:
        pooler = PgBouncer(database, mode=mode, settings={"default_pool_size": "1"})  # type: ignore[arg-type]
    except ServerMissing as missing:
        pytest.skip(str(missing))
    (site / "wsgi.py").write_text(
        """
import os
from sqlalchemy import create_engine
engine = create_engine(os.environ["URL"], pool_pre_ping=True)
def application(environ, start_response): ...
"""
    )
    with pooler:
        monkeypatch.setenv("URL", pooler.url("psycopg"))
        facts, findings = look("wsgi", patience=3600.0, timeout=3600.0)
    (asked,) = facts.databases
    assert (asked.error, asked.pooler, asked.prepared_fails) == ("", mode, False)
    assert findings == []
