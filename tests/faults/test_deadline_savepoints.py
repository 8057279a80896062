"""The end of a savepoint is sent however late it is: without it a COMMIT would save what was undone, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.drivers import Driver, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

DEADLINE = 0.5
pytestmark = pytest.mark.parametrize("driver", [driver_named(name) for name in ("psycopg2", "pymysql")], ids=str)


@pytest.fixture
def saved(driver: Driver, server_of: Callable[..., PostgreSQL | MariaDB]) -> Iterator[PostgreSQL | MariaDB]:
    server = server_of(driver)
    server.query("create table saved (name varchar(20))")
    yield server
    server.query("drop table saved")


@pytest.mark.parametrize("connect", [Connection, Session])
def test_of_one_whose_query_was_cancelled(
    connect: Callable[[Engine], Any], driver: Driver, saved: PostgreSQL | MariaDB
) -> None:
    engine = create_engine(driver.url(saved.url()))
    sleep = text(f"select {'pg_sleep' if saved.name == 'PostgreSQL' else 'sleep'}(60)")

    def attempt(connection: Connection | Session) -> None:
        with connection.begin_nested():
            connection.execute(text("insert into saved values ('within')"))
            connection.execute(sleep)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with connect(engine) as connection:
            connection.execute(text("insert into saved values ('before')"))
            with pytest.raises(DBAPIError):
                attempt(connection)
            connection.commit()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"saved"]

    try:
        assert Client(DBGuard(app, engine, deadline=DEADLINE)).post("/").text == "saved"
    finally:
        engine.dispose()
    assert saved.query("select name from saved") == [("before",)]


def test_of_one_that_ended_well_when_the_time_was_up(driver: Driver, saved: PostgreSQL | MariaDB) -> None:
    engine = create_engine(driver.url(saved.url()))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            with connection.begin_nested():
                connection.execute(text("insert into saved values ('within')"))
                environ["wsgi_dbguard.request"].in_database = DEADLINE
            connection.commit()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"saved"]

    try:
        assert Client(DBGuard(app, engine, deadline=DEADLINE)).post("/").text == "saved"
    finally:
        engine.dispose()
    assert saved.query("select name from saved") == [("within",)]
