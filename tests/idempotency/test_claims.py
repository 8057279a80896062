"""The mark in the application's own transaction: when it is set, and who may not set it any more."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from wsgi_dbguard.idempotency import ClaimLost, create_table
from wsgi_dbguard.lab.drivers import DRIVERS

from .conftest import KEYS, Database, Shop, kind, orders, post, rows, site, url_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # it tells what has written
def test_a_transaction_that_only_reads_is_no_mark(engine: Engine, database: Database) -> None:
    """Such as an authentication that ends its transaction; what fails after it was not applied."""

    def reads_then_fails(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(engine) as session:
            session.execute(text("select item from orders"))
            session.commit()
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        post(site(reads_then_fails, engine))
    assert rows(database) == 0


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pg8000"])
def test_a_read_only_transaction_is_not_asked_to_write_the_mark(
    database: Database, make_engine: Any, driver: str
) -> None:
    engine: Engine = make_engine(database.url(driver))

    def reads(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect().execution_options(postgresql_readonly=True) as connection:
            connection.execute(text("select item from orders"))
            connection.commit()
        start_response("200 OK", [])
        return [b"read"]

    app = site(reads, engine)
    assert [post(app).text, post(app).text] == ["read", "read"]
    assert database.query(f"select applied from {KEYS}") == [(False,)]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # no constraint waits for the COMMIT in MariaDB
def test_a_commit_that_the_server_refused_is_no_mark(engine: Engine, database: Database) -> None:
    """And the next one, in the same request, sets it."""
    database.query("create table once (n int unique deferrable initially deferred)")
    try:
        outcomes = []

        def tries(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            with Session(engine) as session:
                session.execute(text("insert into once values (1), (1)"))
                try:
                    session.commit()
                except DBAPIError:
                    session.rollback()
                    outcomes.append(database.query(f"select applied from {KEYS}"))
                session.execute(text("insert into once values (1)"))
                session.commit()
            outcomes.append(database.query(f"select applied from {KEYS}"))
            start_response("200 OK", [])
            return [b"well"]

        assert post(site(tries, engine)).text == "well"
        assert outcomes == [[(False,)], [(True,)]]
    finally:
        database.query("drop table once")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # MariaDB has no such state
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])  # pg8000 has an error of its own, also without a key
def test_a_commit_that_rolls_back_what_failed_is_no_error_for_its_key(
    database: Database, make_engine: Any, driver: str
) -> None:
    """PostgreSQL takes a COMMIT after a failed statement, without a word: as in a request without a key."""
    engine: Engine = make_engine(database.url(driver))

    def fails(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            connection.execute(text("insert into orders values ('x')"))
            with suppress(DBAPIError):
                connection.execute(text("select 1 / 0"))
            connection.commit()
        start_response("200 OK", [])
        return [b"well"]

    app = site(fails, engine)
    assert [post(app, None).text, post(app).text] == ["well", "well"]
    assert (orders(database), database.query(f"select applied from {KEYS}")) == ([], [(False,)])


def test_the_mark_is_made_once_whatever_a_later_snapshot_says(database: Database, make_engine: Any) -> None:
    """In REPEATABLE READ a second mark would be an update of a row that has changed since."""
    engine = make_engine(url_of(database), isolation_level="REPEATABLE READ")

    def two(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as outer, engine.connect() as inner:
            outer.execute(text("select item from orders"))
            inner.execute(text("insert into orders values ('inner')"))
            inner.commit()
            outer.execute(text("insert into orders values ('outer')"))
            outer.commit()
        start_response("200 OK", [])
        return [b"well"]

    app = site(two, engine)
    assert [post(app).text, post(app).text] == ["well", "well"]
    assert sorted(orders(database)) == ["inner", "outer"]


def test_a_lease_that_is_over_is_taken_and_the_late_commit_fails(
    shop: Shop, engine: Engine, database: Database
) -> None:
    """The first one comes back when another one has its key: it is told the other one's answer."""
    app = site(shop, engine)
    other: list[TestResponse] = []

    def late(session: Session) -> None:
        shop.before = lambda session: None
        assert kind(post(app)) == (409, "idempotency-running")
        database.query(f"update {KEYS} set expires = 1")
        other.append(post(app))

    shop.before = late
    first = post(app)
    assert other[0].text == "apple 2"
    assert "Idempotent-Replayed" not in other[0].headers
    assert (first.text, first.headers["Idempotent-Replayed"]) == ("apple 2", "true")
    assert orders(database) == ["apple"]
    assert shop.runs == 2


def test_an_application_that_ignores_the_loss_commits_nothing(engine: Engine, database: Database) -> None:
    met: list[BaseException] = []

    def stubborn(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        database.query(f"update {KEYS} set owner = 'another'")
        with engine.connect() as connection:
            for _ in range(3):
                try:
                    connection.execute(text("insert into orders values ('x')"))
                    connection.commit()
                except DBAPIError as error:
                    met.append(error)
                    connection.rollback()
        start_response("200 OK", [])
        return [b"well"]

    assert kind(post(site(stubborn, engine))) == (409, "idempotency-running")
    assert [type(each) for each in met] == [ClaimLost] * 3
    assert orders(database) == []


def test_a_dead_claim_that_was_applied_is_not_done_again(shop: Shop, engine: Engine, database: Database) -> None:
    """A worker was killed after the COMMIT, before it could store the answer."""
    app = site(shop, engine)
    post(app)
    database.query(f"update {KEYS} set head = null, body = null, expires = 1")
    assert kind(post(app)) == (409, "idempotency-applied")


@pytest.mark.parametrize("driver", ["psycopg", "pg8000", "mysqlclient", "mariadb"])
def test_the_other_drivers(request: pytest.FixtureRequest, make_engine: Any, driver: str) -> None:
    """What each of them counts as updated rows, and how its transactions begin and end."""
    known = next(each for each in DRIVERS if each.name == driver)
    if missing := known.missing():
        pytest.skip(missing)
    server: Database = request.getfixturevalue("postgres" if known.database == "postgresql" else "mariadb")
    engine = make_engine(server.url(driver))
    create_table(engine)
    server.query("create table orders (item varchar(40))")
    shop = Shop(engine)
    try:
        app = site(shop, engine)
        assert [post(app).text, post(app).text] == ["apple 1", "apple 1"]
        shop.before = lambda session: server.query(f"update {KEYS} set owner = 'another'")
        post(app, "lost")
        assert len(orders(server)) == 1
        shop.before = lambda session: session.rollback()
        assert post(app, "free").text == "apple 3"
        with engine.connect() as connection:  # and its mode is what it was
            connection.execute(text("insert into orders values ('x')"))
            connection.rollback()
        assert len(orders(server)) == 1
    finally:
        server.query(f"drop table {KEYS}")
        server.query("drop table orders")
