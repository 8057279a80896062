"""S3, gone away: "MySQL server has gone away" (2006) or "Lost connection" (2013) on the first request after a quiet
night. pool_recycle is set, and does not help: to more than the server's wait_timeout, which nobody had looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from wsgi_dbguard import DBGuard, guard
from wsgi_dbguard.failures import Failure, classify
from wsgi_dbguard.lab.drivers import DRIVERS
from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.process import wait_until

pytestmark = pytest.mark.slow

NIGHT = 2  # seconds, the server's wait_timeout
RECYCLE = 7200  # seconds, the application's pool_recycle
INSTALLED = [driver.name for driver in DRIVERS if driver.database == "mariadb" and not driver.missing()]


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    try:
        server = MariaDB(settings={"wait_timeout": str(NIGHT)})
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@contextmanager
def site(server: MariaDB, driver: str, *, guarded: bool) -> Iterator[tuple[FlaskClient, Engine, list[Exception]]]:
    """A Flask application: its client, its engine, and the errors that it met."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = server.url(driver)
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_recycle": RECYCLE}
    db = SQLAlchemy(app)
    errors: list[Exception] = []

    def page() -> str:
        try:
            return str(db.session.scalar(text("select 'page'")))
        except DBAPIError as error:
            errors.append(error)
            raise

    app.add_url_rule("/", "page", page)
    with app.app_context():
        engine = db.engine
    if guarded:
        app.wsgi_app = DBGuard(app.wsgi_app, engine, replay="off")  # type: ignore[method-assign]
    yield app.test_client(), engine, errors
    engine.dispose()


def status(client: FlaskClient) -> int:
    """Of one request for the page; a server makes a 500 of an error that is raised past Flask."""
    try:
        return client.get("/").status_code
    except DBAPIError:  # mysql-connector's connection fails once more when the session is removed
        return 500


def spend_night(server: MariaDB) -> None:
    """Nobody asks for anything until the server has closed all connections."""
    wait_until(lambda: not server.backends(), timeout=60.0, what="the end of all connections")


@pytest.mark.parametrize("driver", INSTALLED)
def test_pool_recycle_that_is_longer_than_wait_timeout_does_not_help(mariadb: MariaDB, driver: str) -> None:
    with site(mariadb, driver, guarded=False) as (client, _, errors):
        assert status(client) == 200
        spend_night(mariadb)
        assert status(client) == 500
        assert [classify(error) for error in errors] == [Failure.DISCONNECT]
        assert status(client) == 200


@pytest.mark.parametrize("driver", INSTALLED)
def test_guard_finds_it_at_checkout_without_a_round_trip(mariadb: MariaDB, driver: str) -> None:
    with site(mariadb, driver, guarded=True) as (client, engine, errors):
        assert status(client) == 200
        spend_night(mariadb)
        assert status(client) == 200
        assert errors == []
        stats = guard(engine).stats()
        assert (stats["replaced"], stats["pings"]) == ({"dead": 1}, 0)
