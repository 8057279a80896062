"""A request that has spent its time in the database: what runs is cancelled on the server, what comes is not sent.

On a real PostgreSQL, and for what PostgreSQL does not do, on fakes of a driver's connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import flask
import pytest
from sqlalchemy import Engine, event, exc, text
from sqlalchemy.orm import Session
from werkzeug.test import Client, TestResponse

from wsgi_dbguard import DBGuard, DeadlineExceeded, deadline, watchdog
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.request import Request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LONG = 120  # seconds that a query takes if nobody stops it
PATIENCE = 60.0  # seconds, however busy the machine
SLEEP = text("select pg_sleep(:seconds)")
UNAVAILABLE = "urn:wsgi-dbguard:unavailable"
OUTCOME_UNKNOWN = "urn:wsgi-dbguard:outcome-unknown"


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(postgres.url(application_name="deadlines"), pool_size=2, max_overflow=0)


@pytest.fixture
def running(postgres: PostgreSQL) -> Callable[[], int]:
    """How many queries of these tests the server is at."""

    def running() -> int:
        [(count,)] = postgres.query(
            "select count(*) from pg_stat_activity where application_name = 'deadlines' and state = 'active'"
        )
        return int(count)

    return running


def ok(start_response: StartResponse, answer: str = "ok") -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]


def serve(app: WSGIApplication, path: str = "/", method: str = "GET") -> TestResponse:
    return Client(app).open(path, method=method, buffered=True)


def kind(response: TestResponse) -> str:
    return str(response.json["type"]) if response.is_json and response.json else ""


def sleeping(engine: Engine, seconds: float = LONG) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": seconds if environ["PATH_INFO"] == "/slow" else 0})
        return ok(start_response)

    return application


# What the client gets


def test_a_query_past_the_deadline_is_cancelled_and_the_request_gets_its_503(
    engine: Engine, running: Callable[[], int]
) -> None:
    guarded = DBGuard(sleeping(engine), engine, deadline=0.5, ping_timeout=PATIENCE)
    begun = time.monotonic()
    response = serve(guarded, "/slow")
    seconds = time.monotonic() - begun
    assert (response.status_code, kind(response)) == (503, UNAVAILABLE)
    assert "Retry-After" in response.headers
    assert 0.5 <= seconds < PATIENCE
    wait_until(lambda: not running(), timeout=PATIENCE, what="the end of the query")


def test_the_next_request_on_that_pool_is_right_and_has_another_connection(engine: Engine) -> None:
    guarded = DBGuard(sleeping(engine), engine, deadline=0.3, ping_timeout=PATIENCE)
    patient = DBGuard(sleeping(engine), engine, deadline=PATIENCE, ping_timeout=PATIENCE)
    assert serve(guarded, "/slow").status_code == 503
    assert serve(patient).status_code == 200
    [stats] = guarded.stats()["pools"].values()
    assert stats["replaced"] == {"deadline": 1}
    assert stats["invalidations"] == 0  # its siblings are well


def test_a_request_in_time_is_left_alone(engine: Engine) -> None:
    guarded = DBGuard(sleeping(engine, 0.05), engine, deadline=PATIENCE, ping_timeout=PATIENCE)
    assert [serve(guarded, "/slow").status_code for _ in range(3)] == [200, 200, 200]
    [stats] = guarded.stats()["pools"].values()
    assert (stats["replaced"], stats["connects"]) == ({}, 1)


def test_a_request_that_is_over_its_time_does_not_run_again(engine: Engine) -> None:
    attempts = []

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        attempts.append(environ["wsgi_dbguard.attempt"])
        with engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": LONG})
        return ok(start_response)

    assert (
        serve(DBGuard(application, engine, deadline=0.3, ping_timeout=PATIENCE, replay="uncommitted")).status_code
        == 503
    )
    assert attempts == [1]


def test_a_500_that_a_framework_made_of_it_becomes_a_503(engine: Engine) -> None:
    app = flask.Flask(__name__)

    @app.get("/")
    def view() -> str:
        with engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": LONG})
        return "ok"

    response = serve(DBGuard(app, engine, deadline=0.3, ping_timeout=PATIENCE))
    assert (response.status_code, kind(response)) == (503, UNAVAILABLE)


def test_statuses_off_leaves_the_500_alone(engine: Engine) -> None:
    with pytest.raises(exc.OperationalError, match="canceling statement"):
        serve(DBGuard(sleeping(engine), engine, deadline=0.3, ping_timeout=PATIENCE, statuses=False), "/slow")


def test_an_application_that_answers_for_itself_is_left_alone(engine: Engine) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            with engine.connect() as connection:
                connection.execute(SLEEP, {"seconds": LONG})
        except exc.OperationalError as error:
            answer = f"too slow: {type(error.orig).__name__}"
        else:
            answer = "in time"
        return ok(start_response, answer)

    response = serve(DBGuard(application, engine, deadline=0.3, ping_timeout=PATIENCE))
    assert (response.status_code, response.text) == (200, "too slow: QueryCanceled")


def test_an_error_of_the_applications_own_stays_its_own(engine: Engine) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            with engine.connect() as connection:
                connection.execute(SLEEP, {"seconds": LONG})
        except exc.OperationalError:
            pass
        raise LookupError("of its own")

    with pytest.raises(LookupError, match="of its own"):
        serve(DBGuard(application, engine, deadline=0.3, ping_timeout=PATIENCE))


def test_after_a_commit_the_outcome_is_unknown(engine: Engine) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            connection.execute(text("create temporary table if not exists noted (n int)"))
            connection.commit()
            connection.execute(SLEEP, {"seconds": LONG})
        return ok(start_response)

    # Enough for what comes before the query, on a busy machine.
    response = serve(DBGuard(application, engine, deadline=1.5, ping_timeout=PATIENCE), method="POST")
    assert (response.status_code, kind(response)) == (503, OUTCOME_UNKNOWN)
    assert "Retry-After" not in response.headers


# What counts


def test_the_time_of_all_statements_counts_and_no_more_are_sent_when_it_is_up(
    engine: Engine, postgres: PostgreSQL
) -> None:
    raised: list[BaseException] = []

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            for _ in range(100):
                try:
                    connection.execute(SLEEP, {"seconds": 0.1})
                except exc.OperationalError as error:
                    raised.append(error)
        return ok(start_response)

    begun = time.monotonic()
    serve(DBGuard(application, engine, deadline=0.5, ping_timeout=PATIENCE))
    assert time.monotonic() - begun < 10.0  # what all of them would have taken
    assert len(raised) >= 95
    # One may have been cancelled, and the transaction is of no use then; from the next one on none was sent.
    assert all(isinstance(error, DeadlineExceeded) for error in raised[1:])
    assert "spent its time in the database" in str(raised[-1])


def test_what_the_application_does_itself_does_not_count(engine: Engine) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request: Request = environ["wsgi_dbguard.request"]
        with engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": 0.1})
            before = request.in_database
            time.sleep(0.2)  # its own work
            assert request.in_database == before
            connection.execute(SLEEP, {"seconds": 0.1})
        assert 0.2 <= request.in_database <= request.seconds - 0.2
        return ok(start_response)

    assert serve(DBGuard(application, engine, deadline=PATIENCE, ping_timeout=PATIENCE)).status_code == 200


@pytest.mark.usefixtures("every_engine")  # or another test's guard counts the write before this one's refuses it
def test_a_write_that_was_not_sent_does_not_make_the_outcome_unknown(engine: Engine) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            try:
                connection.execute(text("select 1, pg_sleep(0) where pg_sleep(120) is null"))
            except exc.OperationalError:
                connection.execute(text("delete from noted"))
        return ok(start_response)

    response = serve(DBGuard(application, engine, deadline=0.3, ping_timeout=PATIENCE))
    assert (response.status_code, kind(response)) == (503, UNAVAILABLE)


def test_a_session_that_ran_into_it_is_rolled_back_and_used_again(engine: Engine) -> None:
    session = Session(engine)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        session.execute(SLEEP, {"seconds": LONG if environ["PATH_INFO"] == "/slow" else 0})
        return ok(start_response)

    guarded = DBGuard(application, engine, deadline=0.3, ping_timeout=PATIENCE)
    patient = DBGuard(application, engine, deadline=PATIENCE, ping_timeout=PATIENCE)
    for _ in range(2):
        assert serve(guarded, "/slow").status_code == 503
        assert serve(patient).status_code == 200
    session.close()


def test_a_body_that_is_produced_later_is_held_to_it(engine: Engine, running: Callable[[], int]) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"begun"
        with engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": LONG})
        yield b"never"

    with pytest.raises(exc.OperationalError, match="canceling statement"):
        serve(DBGuard(application, engine, deadline=0.3, ping_timeout=PATIENCE))
    wait_until(lambda: not running(), timeout=PATIENCE, what="the end of the query")


def test_threads_of_the_application_in_a_copied_context_are_held_to_it(engine: Engine) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with engine.connect() as connection:
                connection.execute(SLEEP, {"seconds": LONG})
        except exc.OperationalError as error:
            raised.append(error)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        threads = [threading.Thread(target=copy_context().run, args=(work,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ok(start_response)

    assert serve(DBGuard(application, engine, deadline=0.3, ping_timeout=PATIENCE)).status_code == 200
    assert len(raised) == 2


def test_outside_a_request_nothing_is_limited(engine: Engine) -> None:
    DBGuard(sleeping(engine), engine, deadline=0.1, ping_timeout=PATIENCE)
    with engine.connect() as connection:
        connection.execute(SLEEP, {"seconds": 0.3})


# Guards within guards


def nested(engine: Engine, *, inner: float | None, outer: float | None) -> tuple[TestResponse, list[int]]:
    """An application that asks another one in the same process; the outer answer, and the inner status it got."""
    told: list[int] = []
    inside = DBGuard(sleeping(engine), engine, deadline=inner, ping_timeout=PATIENCE)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        told.append(serve(inside, "/slow").status_code)
        with engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": 0})
        return ok(start_response)

    return serve(DBGuard(application, engine, deadline=outer, ping_timeout=PATIENCE)), told


def test_the_inner_requests_time_is_its_own(engine: Engine) -> None:
    response, told = nested(engine, inner=0.3, outer=PATIENCE)
    assert (response.status_code, told) == (200, [503])


def test_the_inner_requests_time_is_the_outer_ones_as_well(engine: Engine) -> None:
    response, told = nested(engine, inner=None, outer=0.3)
    assert (response.status_code, kind(response), told) == (503, UNAVAILABLE, [])


# Nothing is left behind


def test_without_a_deadline_nobody_listens(engine: Engine) -> None:
    DBGuard(sleeping(engine), engine)
    methods = [getattr(engine.dialect, name) for name in deadline._ENDINGS]
    assert not event.contains(engine, "before_cursor_execute", deadline._on_statement)
    DBGuard(sleeping(engine), engine, deadline=1.0)
    assert event.contains(engine, "before_cursor_execute", deadline._on_statement)
    around = [getattr(engine.dialect, name) for name in deadline._ENDINGS]
    assert [each.__wrapped__ for each in around] == methods
    DBGuard(sleeping(engine), engine, deadline=2.0)
    assert [getattr(engine.dialect, name) for name in deadline._ENDINGS] == around


def test_a_listener_that_raises_leaves_no_deadline_behind(engine: Engine) -> None:
    def refuse(connection: Any, cursor: Any, statement: str, *ignored: Any) -> None:
        if "refused" in statement:
            raise LookupError(statement)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection, pytest.raises(LookupError):
            connection.execute(text("select 'refused'"))
        return ok(start_response)

    event.listen(engine, "before_cursor_execute", refuse)
    assert serve(DBGuard(application, engine, deadline=PATIENCE, ping_timeout=PATIENCE)).status_code == 200
    assert not any(isinstance(each, deadline.Running) for each in watchdog._watchdog.pending.values())


def test_a_query_that_ends_by_itself_when_its_time_is_up_leaves_the_pool_right(engine: Engine) -> None:
    """The cancel and the answer cross: whatever comes of that request, the next ones are right."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": 0 if environ["PATH_INFO"].startswith("/after") else 0.05})
            answer = connection.scalar(text("select :path"), {"path": environ["PATH_INFO"]})
        return ok(start_response, str(answer))

    guarded = DBGuard(application, engine, deadline=0.05, ping_timeout=PATIENCE)
    patient = DBGuard(application, engine, deadline=PATIENCE, ping_timeout=PATIENCE)
    for number in range(20):
        response = serve(guarded, f"/{number}")
        assert response.status_code == 503 or response.text == f"/{number}"
        assert serve(patient, f"/after-{number}").text == f"/after-{number}"


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_cut_off(make_engine: Callable[..., Engine]) -> None:
    with PostgreSQL() as server:
        engine = make_engine(server.url(connect_timeout="60"), pool_size=1)

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            with engine.connect() as connection:
                if environ["PATH_INFO"] == "/slow":
                    server.pause()
                connection.execute(SLEEP, {"seconds": 0})
            return ok(start_response)

        guarded = DBGuard(application, engine, deadline=2.0, ping_timeout=1.0)
        begun = time.monotonic()
        try:
            response = serve(guarded, "/slow")
        finally:
            server.resume()
        assert 3.0 <= time.monotonic() - begun < PATIENCE
        assert (response.status_code, kind(response)) == (503, UNAVAILABLE)
        assert serve(guarded).status_code == 200
        engine.dispose()
