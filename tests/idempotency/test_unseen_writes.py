"""Writes that look like reads, or are not to be seen at all: what committed them is marked all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from wsgi_dbguard.lab.mariadb import MariaDB

from .conftest import Database, kind, orders, post, rows, site

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

INSERT = "insert into orders values ('apple')"


@pytest.fixture
def function(database: Database) -> Iterator[None]:
    """`put(text)` inserts an order."""
    if isinstance(database, MariaDB):
        database.query(
            "create function put(item varchar(40)) returns int modifies sql data "
            "begin insert into orders values (item); return 1; end"
        )
    else:
        database.query(
            "create function put(item text) returns int language sql as 'insert into orders values (item) returning 1'"
        )
    yield
    database.query("drop function put")


def by_function(session: Session) -> None:
    session.scalar(select(func.put("apple")))


def by_cursor(session: Session) -> None:
    session.execute(text("select 1"))
    cursor = session.connection().connection.cursor()
    cursor.execute(INSERT)
    cursor.close()


def by_the_drivers_connection(session: Session) -> None:
    session.execute(text("select 1"))
    driver: Any = session.connection().connection.dbapi_connection
    cursor = driver.cursor()
    cursor.execute(INSERT)
    cursor.close()


def failing(engine: Engine, write: Callable[[Session], object]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(engine) as session:
            write(session)
            session.commit()
        raise KeyError("a bug")

    return app


@pytest.mark.usefixtures("function")
@pytest.mark.parametrize("write", [by_function, by_cursor, by_the_drivers_connection])
def test_it_is_done_once(engine: Engine, database: Database, write: Callable[[Session], object]) -> None:
    app = site(failing(engine, write), engine)
    with pytest.raises(KeyError):
        post(app)
    assert kind(post(app)) == (409, "idempotency-applied")
    assert orders(database) == ["apple"]


def read(session: Session) -> None:
    session.execute(text("select item from orders"))


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_mariadb_does_not_tell_what_only_read(engine: Engine, database: Database) -> None:
    """So that it is marked as well."""
    app = site(failing(engine, read), engine)
    with pytest.raises(KeyError):
        post(app)
    assert kind(post(app)) == (409, "idempotency-applied")


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_but_for_a_transaction_that_was_made_read_only(engine: Engine, database: Database) -> None:
    def read_only(session: Session) -> None:
        driver: Any = session.connection().connection.dbapi_connection
        cursor = driver.cursor()
        cursor.execute("start transaction read only")
        cursor.close()
        read(session)

    app = site(failing(engine, read_only), engine)
    with pytest.raises(KeyError):
        post(app)
    assert rows(database) == 0
