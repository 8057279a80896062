"""Transactions in two phases are marked before they are prepared: from then on others may commit them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from wsgi_dbguard.idempotency import ClaimLost, ddl
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

from .conftest import KEYS, Database, orders, post, rows, site, url_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

INSERT = text("insert into orders values ('apple')")


@pytest.fixture(scope="module")
def preparing() -> Iterator[PostgreSQL]:
    """A PostgreSQL that lets transactions be prepared."""
    try:
        server = PostgreSQL(settings={"max_prepared_transactions": "5"})
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(params=["postgresql", "mariadb"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: Database = request.getfixturevalue("preparing" if request.param == "postgresql" else "mariadb")
    for statement in ddl(request.param).split(";")[:-1]:
        server.query(statement)
    server.query("create table orders (item varchar(40))")
    yield server
    server.query(f"drop table {KEYS}")
    server.query("drop table orders")


@pytest.fixture
def engine(database: Database, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(url_of(database))


def prepared(database: Database) -> int:
    found = "select gid from pg_prepared_xacts" if isinstance(database, PostgreSQL) else "xa recover"
    return len(database.query(found))


def marked(database: Database) -> bool:
    return bool(database.query(f"select count(*) from {KEYS} where applied")[0][0])


def app_of(engine: Engine, work: Callable[[Connection], object]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            work(connection)
        start_response("201 Created", [("Content-Type", "text/plain")])
        return [b"well"]

    return site(app, engine)


def test_it_is_done_once(engine: Engine, database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.rollback()
        with Session(engine, twophase=True) as session:
            session.execute(INSERT)
            session.commit()

    app = app_of(engine, work)
    assert [post(app).text, post(app).text] == ["well", "well"]
    assert (orders(database), marked(database), prepared(database)) == (["apple"], True, 0)


@pytest.mark.parametrize("prepare", [False, True])
def test_the_mark_is_part_of_it(engine: Engine, database: Database, prepare: bool) -> None:
    seen = []

    def work(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(INSERT)
        if prepare:
            transaction.prepare()
        seen.append(marked(database))
        transaction.commit()
        seen.append(marked(database))

    app = app_of(engine, work)
    assert [post(app).text, post(app).text] == ["well", "well"]
    assert (orders(database), seen) == (["apple"], [False, True])


def test_one_that_is_prepared_and_rolled_back_is_none(engine: Engine, database: Database) -> None:
    """The key is free, and what the request commits afterwards is marked."""
    runs: list[bool] = []

    def work(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(INSERT)
        transaction.prepare()
        transaction.rollback()
        runs.append(marked(database))
        if len(runs) == 1:
            raise KeyError("a bug")
        connection.execute(INSERT)
        connection.commit()
        runs.append(marked(database))

    app = app_of(engine, work)
    with pytest.raises(KeyError):
        post(app)
    assert (orders(database), rows(database)) == ([], 0)
    assert [post(app).text, post(app).text] == ["well", "well"]
    assert (orders(database), runs) == (["apple"], [False, False, True])


@pytest.mark.parametrize("prepare", [False, True])
def test_a_mark_that_cannot_be_set_leaves_nothing_prepared(engine: Engine, database: Database, prepare: bool) -> None:
    missing = f"alter table {KEYS} rename to moved", f"alter table moved rename to {KEYS}"

    def work(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(INSERT)
        database.query(missing[0])
        try:
            if prepare:
                transaction.prepare()
            transaction.commit()
        finally:
            database.query(missing[1])

    app = app_of(engine, work)
    with pytest.raises(DBAPIError, match=KEYS):
        post(app)
    assert (orders(database), rows(database), prepared(database)) == ([], 0, 0)


def test_who_has_lost_the_key_prepares_nothing(engine: Engine, database: Database) -> None:
    met: list[Any] = []

    def work(connection: Connection) -> None:
        transaction = connection.begin_twophase()
        connection.execute(INSERT)
        database.query(f"update {KEYS} set owner = 'another'")
        try:
            transaction.prepare()
        except ClaimLost as lost:
            met.append(lost)
            raise

    assert post(app_of(engine, work)).status_code == 409
    assert (len(met), orders(database), prepared(database)) == (1, [], 0)
