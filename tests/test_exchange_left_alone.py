"""What is no matter for a second run: a response that has begun, what is the application's own, what must be let go."""

from __future__ import annotations

import gc
import io
import json
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.exchanges import KEY, PLAIN, ApplicationError, Faults, call
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.request import Request, current

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(postgres.url(), pool_size=4)


# A response that has begun


def test_what_was_written_is_not_run_again(engine: Engine, faults: Faults) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)(b"begun")
        with engine.connect() as connection:
            return [faults.strike(connection).encode()]

    environ = create_environ()
    with pytest.raises(exc.OperationalError):
        call(DBGuard(app, engine), environ)
    assert faults.attempts == 1
    assert environ[KEY].failure is exc.OperationalError
    assert environ[KEY].ended is not None


def test_a_response_whose_first_chunk_is_made_is_not_run_again(engine: Engine, faults: Faults) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        with engine.connect() as connection:
            yield b"begun"
            yield faults.strike(connection).encode()

    environ = create_environ()
    with pytest.raises(exc.OperationalError):
        call(DBGuard(app, engine), environ)
    assert faults.attempts == 1
    assert environ[KEY].ended is not None


def test_nothing_is_sent_before_the_first_chunk_is_there() -> None:
    order: list[str] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        order.append("chunk")
        yield b"one"

    def start_response(status: str, *more: Any) -> Any:
        order.append("start")

    body: Any = DBGuard(app, create_engine("sqlite://"))(create_environ(), start_response)
    body.close()
    assert order == ["chunk", "start"]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_server_that_refuses_the_headers_ends_the_request_and_closes_the_body(lazy: bool) -> None:
    closed: list[Request | None] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"one"])

        def close(self) -> None:
            closed.append(current.get())

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("bad\nname", "")])
        return Body() if lazy else [b"one"]

    def refuse(*args: Any) -> Any:
        raise ValueError("bad header")

    environ = create_environ()
    with pytest.raises(ValueError, match="bad header"):
        DBGuard(app, create_engine("sqlite://"))(environ, refuse)
    assert environ[KEY].ended is not None
    assert closed == ([environ[KEY]] if lazy else [])


# What is the application's own


def test_an_error_of_the_statement_stays_as_it_is(engine: Engine) -> None:
    for statement, error in (
        ("select 1/0", exc.DataError),
        ("selekt", exc.ProgrammingError),
        ("insert into pg_class select * from pg_class", exc.DBAPIError),
    ):

        def app(environ: WSGIEnvironment, start_response: StartResponse, statement: str = statement) -> Iterable[bytes]:
            with engine.connect() as connection:
                connection.execute(text(statement))
            return []

        with pytest.raises(error):
            call(DBGuard(app, engine), create_environ())


def test_an_integrity_error_after_a_failure_that_was_handled_stays_as_it_is(engine: Engine, faults: Faults) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with suppress(exc.DBAPIError), engine.connect() as connection:
            faults.strike(connection)
        with engine.begin() as connection:
            connection.execute(text("create temporary table one (id int primary key) on commit drop"))
            connection.execute(text("insert into one values (1), (1)"))
        return []

    with pytest.raises(exc.IntegrityError):
        call(DBGuard(app, engine), create_environ())
    assert faults.attempts == 1


def test_an_error_that_has_nothing_to_do_with_a_failure_before_it_stays_as_it_is(
    engine: Engine, faults: Faults
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with suppress(exc.DBAPIError), engine.connect() as connection:
            faults.strike(connection)
        raise ApplicationError

    with pytest.raises(ApplicationError):
        call(DBGuard(app, engine), create_environ())
    assert faults.attempts == 1


@pytest.mark.parametrize("status", ["404 Not Found", "502 Bad Gateway", "503 Service Unavailable", "200 OK"])
def test_a_page_that_the_application_made_of_a_failure_is_sent(status: str, engine: Engine, faults: Faults) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with suppress(exc.DBAPIError), engine.connect() as connection:
            faults.strike(connection)
        start_response(status, PLAIN)
        return [b"the application's"]

    assert call(DBGuard(app, engine), create_environ())[0::2] == (status, b"the application's")
    assert faults.attempts == 1


def test_a_500_without_a_database_failure_is_sent(engine: Engine) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("500 Oops", PLAIN)
        yield b"the application's"

    assert call(DBGuard(app, engine), create_environ())[0::2] == ("500 Oops", b"the application's")


def test_interrupts_are_never_swallowed(engine: Engine, faults: Faults) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with suppress(exc.DBAPIError), engine.connect() as connection:
            faults.strike(connection)
        raise SystemExit

    environ = create_environ()
    with pytest.raises(SystemExit):
        call(DBGuard(app, engine), environ)
    assert environ[KEY].ended is not None


# The database that is not there at all


def test_a_connection_that_cannot_be_made_is_answered_and_not_run_again(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("postgresql+psycopg2://127.0.0.1:1/none")
    runs: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        runs.append(1)
        with engine.connect():
            return []

    status, _, body = call(DBGuard(app, engine), create_environ())
    assert (status, len(runs)) == ("503 Service Unavailable", 1)
    assert json.loads(body)["type"].endswith(":unavailable")


def test_an_exhausted_pool_is_answered(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(postgres.url(), pool_size=1, max_overflow=0, pool_timeout=0.01)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect():
            return []

    with engine.connect():
        assert call(DBGuard(app, engine), create_environ())[0] == "503 Service Unavailable"


# What is let go


@pytest.mark.parametrize(
    "failure", [StaleDataError(), exc.OperationalError("", {}, Exception(), connection_invalidated=True)]
)
def test_an_answered_failure_keeps_nothing_alive(failure: exc.SQLAlchemyError, engine: Engine) -> None:
    # made here: SQLAlchemy's own errors are parts of circles, with or without a guard
    class Resource:
        pass

    kept: list[weakref.ref[Resource]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        local = environ["a.resource"] = Resource()
        kept.append(weakref.ref(local))
        raise failure.with_traceback(None)

    def run(method: str) -> None:
        assert call(DBGuard(app, engine), create_environ(method=method))[0] != "200 OK"
        failure.__traceback__ = None

    logging.disable()  # pytest keeps each record, and its traceback
    gc.disable()
    try:
        for method in ("GET", "POST"):
            run(method)
            assert [each() for each in kept] == [None] * len(kept)
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
    assert len(kept) == (2 if isinstance(failure, StaleDataError) else 3)


def test_a_connection_that_the_application_lets_go_goes_home_at_once(
    postgres: PostgreSQL, make_engine: Callable[..., Engine], rows: Callable[[], list[str]]
) -> None:
    engine = make_engine(postgres.url(), pool_size=1, max_overflow=0, pool_timeout=0.01)
    insert = text("insert into noted values ('forgotten')")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for _ in range(3):
            engine.connect().execute(insert)  # as old code does
            gc.collect()
        for _ in range(3):
            Session(engine).execute(insert)
            gc.collect()
        for _ in range(3):
            connection = engine.connect()
            connection.execute(insert)
            connection.commit()
            del connection
            gc.collect()
        start_response("200 OK", PLAIN)
        return [b"well"]

    assert call(DBGuard(app, engine, replay="uncommitted"), create_environ(method="POST"))[0] == "200 OK"
    assert rows() == ["forgotten"] * 3


def test_the_body_of_a_request_is_left_alone_where_there_is_none(engine: Engine) -> None:
    stream = io.BytesIO()
    seen: list[Any] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(environ["wsgi.input"])
        return []

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.input": stream}
    DBGuard(app, engine)(environ, lambda *args: lambda data: None)
    assert seen == [stream]
