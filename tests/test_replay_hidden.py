"""Writes that are hard to see: past SQLAlchemy's Connection, in a nested guard, sent by somebody else's listener, or
waiting in a session that is not the request's alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from psycopg2 import sql
from sqlalchemy import Engine, event, exc, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

INSERT = "insert into hidden (name) values ('once')"


class Base(DeclarativeBase):
    pass


class Hidden(Base):
    __tablename__ = "hidden"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    postgres.query("create table hidden (id serial, name text)")
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


def test_a_raw_connection_that_a_listener_takes_while_a_connection_is_made(
    postgres: PostgreSQL, engine: Engine, make_engine: Callable[..., Engine]
) -> None:
    audit = make_engine(postgres.url())
    event.listen(engine, "engine_connect", lambda connection: raw(audit))
    app = DBGuard(site(postgres, engine, lambda: None), engine)
    assert (outcome(app), rows(postgres)) == ("outcome-unknown", 1)


@pytest.mark.parametrize("driver", ["psycopg", "pg8000"])
def test_what_fails_after_a_commit_does_not_undo_it(
    driver: str, postgres: PostgreSQL, engine: Engine, make_engine: Callable[..., Engine]
) -> None:
    """A fetch has no statement, as a COMMIT has none."""
    own = make_engine(postgres.url(driver))

    def work() -> None:
        with own.connect() as connection:
            numbers = text("select generate_series(1, 9999)").execution_options(yield_per=10)
            found = connection.execute(numbers)
            assert found.fetchone() is not None
            connection.execute(text(INSERT))
            connection.commit()  # it closes the cursor in the server
            with pytest.raises(exc.DBAPIError, match="does not exist"):
                found.fetchall()

    app = DBGuard(site(postgres, own, work), own)
    assert (outcome(app), rows(postgres)) == ("outcome-unknown", 1)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pg8000"])
def test_a_commit_of_the_drivers(
    driver: str, postgres: PostgreSQL, engine: Engine, make_engine: Callable[..., Engine]
) -> None:
    own = make_engine(postgres.url(driver))

    def work() -> None:
        with own.connect() as connection:
            connection.execute(text(INSERT))
            connection.connection.commit()

    app = DBGuard(site(postgres, own, work), own)
    assert (outcome(app), rows(postgres)) == ("outcome-unknown", 1)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pg8000"])
def test_a_rollback_leaves_nothing(
    driver: str, postgres: PostgreSQL, engine: Engine, make_engine: Callable[..., Engine]
) -> None:
    own = make_engine(postgres.url(driver))

    def work() -> None:
        with own.connect() as connection:
            connection.execute(text(INSERT))

    app = DBGuard(site(postgres, own, work), own)
    assert (outcome(app), rows(postgres)) == ("200 OK", 0)


# Added, but not flushed


def add(session: Session) -> None:
    session.add(Hidden(name="once"))


def commit_after(app: WSGIApplication, session: Session) -> WSGIApplication:
    def both(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = app(environ, start_response)
        session.commit()
        return body

    return both


def test_to_a_session_whose_transaction_began_outside_any_request(postgres: PostgreSQL, engine: Engine) -> None:
    with Session(engine) as session:
        app = commit_after(site(postgres, engine, lambda: add(session)), session)
        guard = DBGuard(app, engine, replay="uncommitted")
        session.scalar(text("select 1"))
        assert (outcome(guard, "POST"), rows(postgres)) == ("unavailable", 0)
        session.rollback()
        assert (outcome(guard, "POST"), rows(postgres)) == ("200 OK", 1)


def test_to_a_session_that_a_thread_of_the_applications_uses(postgres: PostgreSQL, engine: Engine) -> None:
    with Session(engine) as session:

        def work() -> None:
            thread = threading.Thread(target=copy_context().run, args=(add, session))
            thread.start()
            thread.join()

        app = commit_after(site(postgres, engine, work), session)
        assert outcome(DBGuard(app, engine, replay="uncommitted"), "POST") == "unavailable"
        assert rows(postgres) == 0


def test_to_a_session_of_the_request_around(postgres: PostgreSQL, engine: Engine) -> None:
    told: list[str] = []
    with Session(engine) as session:
        inner = DBGuard(site(postgres, engine, lambda: add(session)), engine, replay="uncommitted")

        def outer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            session.scalar(text("select 1"))
            told.append(outcome(inner, "POST"))
            session.commit()
            start_response("200 OK", [])
            return []

        assert outcome(DBGuard(outer, engine), "POST") == "200 OK"
        assert (told, rows(postgres)) == (["unavailable"], 1)


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
