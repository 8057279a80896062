"""Writes that are hard to see: past SQLAlchemy's Connection, in a nested guard, sent by somebody else's listener."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from psycopg2 import sql
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

INSERT = "insert into hidden values ('once')"


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    postgres.query("create table hidden (name text)")
    yield make_engine(postgres.url())
    postgres.query("drop table hidden")


def site(postgres: PostgreSQL, engine: Engine, work: Callable[[], object]) -> WSGIApplication:
    """Does `work`, then loses a connection, in its first run only."""
    runs: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        work()
        runs.append(1)
        if len(runs) == 1:
            with engine.connect() as connection:
                postgres.terminate(connection.scalar(text("select pg_backend_pid()")) or 0)
                connection.execute(text("select 1"))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"well"]

    return app


def rows(postgres: PostgreSQL) -> int:
    return int(postgres.query("select count(*) from hidden")[0][0])


def raw(engine: Engine) -> None:
    connection = engine.raw_connection()
    connection.cursor().execute(INSERT)
    connection.commit()
    connection.close()


def core(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(INSERT))


def outcome(app: WSGIApplication, method: str = "GET") -> str:
    response = Client(app).open("/", method=method)
    problem: Any = response.json if response.is_json else None
    return problem["type"].rpartition(":")[2] if problem else response.status


def test_a_raw_connection_in_a_get(postgres: PostgreSQL, engine: Engine) -> None:
    app = DBGuard(site(postgres, engine, lambda: raw(engine)), engine)
    assert (outcome(app), rows(postgres)) == ("outcome-unknown", 1)


@pytest.mark.parametrize("writer", ["outer", "inner"])
def test_one_of_two_nested_requests_writes_and_the_other_commits(
    writer: str, postgres: PostgreSQL, engine: Engine
) -> None:
    session = Session(engine)

    def write() -> None:
        session.execute(text(INSERT))

    def inner_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        (write if writer == "inner" else session.commit)()
        start_response("200 OK", [])
        return []

    inner = DBGuard(inner_app, engine, leaks="off")

    def work() -> None:
        if writer == "outer":
            write()
        Client(inner).open("/", method="POST" if writer == "inner" else "GET")
        if writer == "inner":
            session.commit()

    app = DBGuard(site(postgres, engine, work), engine, replay="uncommitted")
    assert outcome(app) == "outcome-unknown"
    assert rows(postgres) == 1
    session.close()


def test_a_listener_that_sends_the_statement_itself(postgres: PostgreSQL, engine: Engine) -> None:
    def send(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        cursor.execute(statement, parameters)
        return True

    event.listen(engine, "do_execute", send)
    app = DBGuard(site(postgres, engine, lambda: core(engine)), engine)
    assert (outcome(app), rows(postgres)) == ("outcome-unknown", 1)


@pytest.mark.parametrize("statement", [b"select 1", sql.SQL("select 1")], ids=["bytes", "composed"])
def test_statements_that_are_no_text_are_sent_as_ever(statement: Any, postgres: PostgreSQL, engine: Engine) -> None:
    seen: list[Any] = []

    def ask() -> None:
        with engine.connect() as connection:
            seen.append(connection.exec_driver_sql(statement).scalar())

    app = DBGuard(site(postgres, engine, ask), engine)
    assert outcome(app) in ("200 OK", "outcome-unknown")
    assert set(seen) == {1}


def test_empty_chunks_are_nothing_sent(postgres: PostgreSQL, engine: Engine) -> None:
    runs: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b""
        runs.append(1)
        with engine.connect() as connection:
            if len(runs) == 1:
                postgres.terminate(connection.scalar(text("select pg_backend_pid()")) or 0)
            connection.execute(text("select 1"))
        yield b"well"

    assert outcome(DBGuard(app, engine)) == "200 OK"
    assert len(runs) == 2
