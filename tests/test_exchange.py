"""A request whose database fails it in the middle: run again where that is harmless, answered honestly otherwise.

On a real PostgreSQL: the connection's backend is terminated from inside the application.
"""

from __future__ import annotations

import gc
import io
import json
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import flask
import pytest
from sqlalchemy import Connection, Engine, create_engine, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from werkzeug.test import Client, create_environ

from wsgi_dbguard import DBGuard, replayable
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.request import Request, current

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

KEY = "wsgi_dbguard.request"
PLAIN = [("Content-Type", "text/plain")]


class ApplicationError(Exception):
    pass


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(postgres.url(), pool_size=4)


@pytest.fixture
def rows(postgres: PostgreSQL) -> Iterator[Callable[[], list[str]]]:
    """The table ``noted``, and what is in it."""
    postgres.query("drop table if exists noted")
    postgres.query("create table noted (name text)")
    yield lambda: [name for (name,) in postgres.query("select name from noted order by name")]
    postgres.query("drop table noted")


class Faults:
    """Loses a connection in the middle of a request, the first `times` times that it is asked to."""

    def __init__(self, postgres: PostgreSQL, times: int = 1) -> None:
        self.postgres = postgres
        self.left = times
        self.attempts = 0

    def strike(self, connection: Connection | Session) -> str:
        self.attempts += 1
        pid = connection.scalar(text("select pg_backend_pid()"))
        if self.left:
            self.left -= 1
            self.postgres.terminate(pid)
        return str(connection.scalar(text("select 'well'")))


@pytest.fixture
def faults(postgres: PostgreSQL) -> Faults:
    return Faults(postgres)


def call(app: WSGIApplication, environ: WSGIEnvironment) -> tuple[str, dict[str, str], bytes]:
    """What a server would get of `app`: it is allowed to start once only."""
    started: list[tuple[str, dict[str, str]]] = []
    written: list[bytes] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info is not None:
            raise exc_info[1]
        assert started == []
        started.append((status, dict(headers)))
        return written.append

    body: Any = app(environ, start_response)
    try:
        written.extend(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return *started[0], b"".join(written)


# Applications that fail in each of the ways in which they can


def bare(engine: Engine, faults: Faults) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            found = faults.strike(connection)
        start_response("200 OK", PLAIN)
        return [found.encode()]

    return app


def after_start(engine: Engine, faults: Faults) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        with engine.connect() as connection:
            return [faults.strike(connection).encode()]

    return app


def generator(engine: Engine, faults: Faults) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        with engine.connect() as connection:
            yield faults.strike(connection).encode()

    return app


def with_flask(engine: Engine, faults: Faults) -> WSGIApplication:
    app = flask.Flask("site")

    def view() -> str:
        with engine.connect() as connection:
            return faults.strike(connection)

    app.add_url_rule("/", view_func=view, methods=["GET", "POST"])
    return app


def made_500(engine: Engine, faults: Faults) -> WSGIApplication:
    """Its own error page, as a generator."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            with engine.connect() as connection:
                found = faults.strike(connection).encode()
            start_response("200 OK", PLAIN)
        except exc.DBAPIError:
            start_response("500 Oops", PLAIN)
            found = b"oops"
        yield found

    return app


def wrapped_error(engine: Engine, faults: Faults) -> WSGIApplication:
    inner = bare(engine, faults)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return inner(environ, start_response)
        except exc.DBAPIError as error:
            raise ApplicationError from error

    return app


APPLICATIONS = [bare, after_start, generator, with_flask, made_500, wrapped_error]
each_application = pytest.mark.parametrize("make", APPLICATIONS)


@each_application
def test_without_the_guard_the_request_fails(
    make: Callable[..., WSGIApplication], engine: Engine, faults: Faults
) -> None:
    status = ""
    with suppress(exc.DBAPIError, ApplicationError):
        status, _, _ = call(make(engine, faults), create_environ())
    assert not status.startswith("200")


@each_application
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_a_lost_connection_is_made_up_for_by_a_second_run(
    make: Callable[..., WSGIApplication], method: str, engine: Engine, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    environ = create_environ(method=method)
    app = make(engine, faults)
    if make is with_flask and method == "OPTIONS":
        pytest.skip("Flask answers it by itself")
    status, headers, body = call(DBGuard(app, engine), environ)
    assert (status, body) == ("200 OK", b"well")
    assert headers["Content-Type"].startswith("text/")
    assert faults.attempts == environ["wsgi_dbguard.attempt"] == environ[KEY].attempt == 2
    assert environ[KEY].ended is not None
    assert environ[KEY].failure is None
    (record,) = [each for each in caplog.records if "runs again" in each.getMessage()]
    assert record.levelno == logging.WARNING
    if make not in (with_flask, made_500):  # they keep it to themselves
        assert "psycopg2.OperationalError" in caplog.text


@each_application
def test_there_is_no_third_run_but_an_honest_answer(
    make: Callable[..., WSGIApplication], engine: Engine, faults: Faults
) -> None:
    faults.left = 3
    status, headers, body = call(DBGuard(make(engine, faults), engine), create_environ())
    assert status == "503 Service Unavailable"
    assert faults.attempts == 2
    assert json.loads(body)["type"] == "urn:wsgi-dbguard:unavailable"
    assert 1 <= int(headers["Retry-After"]) <= 3


@each_application
def test_a_post_does_not_run_again_by_default(
    make: Callable[..., WSGIApplication], engine: Engine, faults: Faults
) -> None:
    environ = create_environ(method="POST")
    status, headers, body = call(DBGuard(make(engine, faults), engine), environ)
    assert (status, faults.attempts) == ("503 Service Unavailable", 1)
    assert headers["Content-Type"] == "application/problem+json"
    assert int(headers["Content-Length"]) == len(body)
    assert "Retry-After" in headers
    assert environ[KEY].ended is not None


@each_application
def test_nothing_is_done_where_nothing_is_asked_for(
    make: Callable[..., WSGIApplication], engine: Engine, faults: Faults
) -> None:
    guard = DBGuard(make(engine, faults), engine, replay="off", statuses=False)
    if make in (with_flask, made_500):
        status, _, _ = call(guard, create_environ())
        assert status.startswith("500")
    else:
        environ = create_environ()
        with pytest.raises(ApplicationError if make is wrapped_error else exc.OperationalError):
            call(guard, environ)
        assert environ[KEY].ended is not None
    assert faults.attempts == 1


def test_replay_off_still_answers(engine: Engine, faults: Faults) -> None:
    status, _, _ = call(DBGuard(bare(engine, faults), engine, replay="off"), create_environ())
    assert (status, faults.attempts) == ("503 Service Unavailable", 1)


def test_a_marked_post_runs_again(engine: Engine, faults: Faults) -> None:
    inner = bare(engine, faults)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        replayable()
        return inner(environ, start_response)

    assert call(DBGuard(app, engine), create_environ(method="POST"))[0] == "200 OK"
    replayable()  # outside any request: nothing


@pytest.mark.parametrize("make", [bare, generator, with_flask])
def test_an_uncommitted_post_runs_again_and_leaves_one_row(
    make: Callable[..., WSGIApplication], engine: Engine, faults: Faults, rows: Callable[[], list[str]]
) -> None:
    class Writing(Faults):
        def strike(self, connection: Connection | Session) -> str:
            connection.execute(text("insert into noted values ('once')"))
            found = super().strike(connection)
            connection.commit()
            return found

    writing = Writing(faults.postgres)
    status, _, body = call(DBGuard(make(engine, writing), engine, replay="uncommitted"), create_environ(method="POST"))
    assert (status, body, writing.attempts) == ("200 OK", b"well", 2)
    assert rows() == ["once"]


# What a second run finds

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


# Nesting


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


def test_wrapped_twice_runs_twice_and_not_four_times(engine: Engine, faults: Faults) -> None:
    faults.left = 9
    guard = DBGuard(DBGuard(bare(engine, faults), engine), engine)
    assert call(guard, create_environ())[0] == "503 Service Unavailable"
    assert faults.attempts == 2


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
