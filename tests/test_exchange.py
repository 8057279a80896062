"""A request whose database fails it in the middle: run again where that is harmless, answered honestly otherwise.

On a real PostgreSQL: the connection's backend is terminated from inside the application.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import flask
import pytest
from sqlalchemy import Connection, Engine, exc, text
from sqlalchemy.orm import Session
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard, replayable
from wsgi_dbguard.lab.exchanges import KEY, PLAIN, ApplicationError, Faults, call
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(postgres.url(), pool_size=4)


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


def test_wrapped_twice_runs_twice_and_not_four_times(engine: Engine, faults: Faults) -> None:
    faults.left = 9
    guard = DBGuard(DBGuard(bare(engine, faults), engine), engine)
    assert call(guard, create_environ())[0] == "503 Service Unavailable"
    assert faults.attempts == 2
