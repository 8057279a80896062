"""A second run: what it finds, and what forbids it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, exc, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from werkzeug.test import Client, create_environ

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.exchanges import PLAIN, Faults, call
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.request import current

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Base(DeclarativeBase):
    pass


class Noted(Base):
    __tablename__ = "noted"
    name: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(postgres.url(), pool_size=4)


own: ContextVar[str] = ContextVar("own", default="unset")


def test_the_second_run_finds_environ_and_context_as_the_first_one_did(engine: Engine, faults: Faults) -> None:
    seen: list[Any] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(("left" in environ, environ["PATH_INFO"], own.get()))
        environ["left"] = faults.attempts
        environ["PATH_INFO"] = "/elsewhere"
        own.set("set")
        start_response("200 OK", [*PLAIN, ("X-Attempt", str(faults.attempts + 1))])
        with engine.connect() as connection:
            yield faults.strike(connection).encode()
        seen.append(own.get())

    environ = create_environ("/here")
    token = own.set("outside")
    try:
        _, headers, _ = call(DBGuard(app, engine), environ)
    finally:
        own.reset(token)
    assert seen == [(False, "/here", "outside")] * 2 + ["set"]
    assert headers["X-Attempt"] == "2"
    assert environ["left"] == 1  # a middleware around the guard sees the second run's


def test_the_second_run_finds_a_clean_session(engine: Engine, faults: Faults, rows: Callable[[], list[str]]) -> None:
    with Session(engine) as session:  # global, and never closed by a request

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            session.execute(text("insert into noted values ('once')"))
            found = faults.strike(session)
            session.commit()
            start_response("200 OK", PLAIN)
            return [found.encode()]

        guard = DBGuard(app, engine, replay="uncommitted", leaks="off")
        assert call(guard, create_environ(method="POST"))[0] == "200 OK"
        assert rows() == ["once"]


def test_what_the_first_run_added_and_did_not_flush_is_not_written_with_the_second_one(
    engine: Engine, faults: Faults, rows: Callable[[], list[str]]
) -> None:
    with Session(engine) as session:

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            session.add(Noted(name="once"))
            with engine.connect() as connection:
                found = faults.strike(connection)
            session.commit()
            start_response("200 OK", PLAIN)
            return [found.encode()]

        guard = DBGuard(app, engine, replay="uncommitted")
        assert call(guard, create_environ(method="POST"))[0] == "200 OK"
        assert rows() == ["once"]


def test_the_failed_response_is_closed_before_the_second_run(engine: Engine, faults: Faults) -> None:
    order: list[str] = []

    class Page:
        def __init__(self, connection: Connection) -> None:
            self.connection = connection

        def __iter__(self) -> Iterator[bytes]:
            try:
                order.append(f"run {faults.attempts + 1}")
                yield faults.strike(self.connection).encode()
            finally:
                order.append("iterator")

        def close(self) -> None:
            order.append("close")
            assert current.get() is not None
            self.connection.close()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return Page(engine.connect())

    assert call(DBGuard(app, engine), create_environ())[2] == b"well"
    assert order == ["run 1", "iterator", "close", "run 2", "iterator", "close"]


def test_a_page_that_commits_at_its_close_does_not_run_again(
    engine: Engine, faults: Faults, rows: Callable[[], list[str]]
) -> None:
    class Page:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"oops"])

        def close(self) -> None:
            with engine.begin() as connection:
                connection.execute(text("insert into noted values ('audit')"))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            with engine.connect() as connection:
                faults.strike(connection)
        except exc.DBAPIError:
            start_response("500 Oops", PLAIN)
        return Page()

    status, _, body = call(DBGuard(app, engine), create_environ())
    assert (status, faults.attempts) == ("503 Service Unavailable", 1)
    assert json.loads(body)["type"] == "urn:wsgi-dbguard:outcome-unknown"
    assert rows() == ["audit"]


def test_writes_that_wait_in_a_kept_connection_forbid_a_second_run(
    engine: Engine, faults: Faults, rows: Callable[[], list[str]]
) -> None:
    with engine.connect() as kept:

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            kept.execute(text("insert into noted values ('once')"))
            with engine.connect() as connection:
                faults.strike(connection)
            kept.commit()
            raise AssertionError

        guard = DBGuard(app, engine, replay="uncommitted")
        assert call(guard, create_environ(method="POST"))[0] == "503 Service Unavailable"
        assert faults.attempts == 1
        kept.rollback()
    assert rows() == []


def test_a_commit_of_a_subrequest_counts_for_the_request_around_it(
    engine: Engine, faults: Faults, rows: Callable[[], list[str]]
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        if environ["PATH_INFO"] == "/sub":
            with engine.begin() as connection:
                connection.execute(text("insert into noted values ('sub')"))
            return [b"sub"]
        with Client(guard).post("/sub"), engine.connect() as connection:
            return [faults.strike(connection).encode()]

    guard = DBGuard(app, engine, replay="uncommitted")
    status, _, body = call(guard, create_environ(method="POST"))
    assert status == "503 Service Unavailable"
    assert json.loads(body)["type"].endswith(":outcome-unknown")
    assert rows() == ["sub"]
