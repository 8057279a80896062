"""What a client is told: problem details, by Accept and method, after the body of its request was read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from sqlalchemy import create_engine, exc, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard
from wsgi_dbguard.answers import CONFLICT, OUTCOME_UNKNOWN, PROBLEM, UNAVAILABLE, Problem, answer, drain
from wsgi_dbguard.replay import RecordedInput

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ENGINE = create_engine("sqlite://")
PROBLEMS = [UNAVAILABLE, OUTCOME_UNKNOWN, CONFLICT]


def lost(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An application that finds its database gone."""
    raise exc.OperationalError("", {}, Exception("gone"), connection_invalidated=True)


def call(app: WSGIApplication, environ: WSGIEnvironment) -> tuple[str, dict[str, str], bytes]:
    started: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.append((status, dict(headers)))

    body: Any = app(environ, start_response)
    content = b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return *started[-1], content


def render(problem: Problem, retry_after: float = 2.0, **environ: str) -> tuple[str, dict[str, str], bytes]:
    return call(lambda env, start: answer(problem, env, start, retry_after), {"REQUEST_METHOD": "GET", **environ})


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problem_details_are_those_of_rfc_9457(problem: Problem) -> None:
    status, headers, body = render(problem)
    assert status == problem.status_line
    assert status == {503: "503 Service Unavailable", 409: "409 Conflict"}[problem.status]
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Length"] == str(len(body))
    assert json.loads(body) == {
        "type": problem.type,
        "status": problem.status,
        "title": problem.title,
        "detail": problem.detail,
    }


def test_only_what_may_be_sent_again_says_when() -> None:
    assert ["Retry-After" in render(problem)[1] for problem in PROBLEMS] == [True, False, False]


@pytest.mark.parametrize(("base", "low", "high"), [(2.0, 1, 3), (0.1, 1, 1), (100.0, 50, 150)])
def test_retry_after_is_spread_around_the_setting(base: float, low: int, high: int) -> None:
    seen = {int(render(UNAVAILABLE, base)[1]["Retry-After"]) for _ in range(200)}
    assert min(seen) >= low
    assert max(seen) <= high
    assert len(seen) > 1 or low == high


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/problem+json"),
        ("*/*", "application/problem+json"),
        ("application/json", "application/problem+json"),
        ("application/problem+json, text/html", "application/problem+json"),
        ("application/xml", "application/problem+json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/plain; charset=utf-8"),
        ("TEXT/PLAIN;q=0.5", "text/plain; charset=utf-8"),
        ("application/problem+json;q=0, text/plain", "text/plain; charset=utf-8"),
        ("text/html; q=0.0, application/xml", "application/problem+json"),
    ],
)
def test_the_kind_is_by_accept(accept: str, kind: str) -> None:
    _, headers, body = render(UNAVAILABLE, HTTP_ACCEPT=accept)
    assert headers["Content-Type"] == kind
    assert body.startswith(b"{" if "json" in kind else b"Database unavailable. ")


def test_head_has_the_headers_of_get_and_no_body() -> None:
    _, headers, body = render(OUTCOME_UNKNOWN, REQUEST_METHOD="HEAD")
    assert body == b""
    assert headers == render(OUTCOME_UNKNOWN)[1]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_the_validator_finds_nothing(method: str, accept: str) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgi.input"].read(2)
        return lost(environ, start_response)

    environ: WSGIEnvironment = {"QUERY_STRING": "", "wsgi.input": io.BytesIO(b"posted"), "CONTENT_LENGTH": "6"}
    environ |= {"REQUEST_METHOD": method, "HTTP_ACCEPT": accept}
    setup_testing_defaults(environ)
    assert call(validator(DBGuard(app, ENGINE)), environ)[0] == "503 Service Unavailable"


# A page of the application's own


def test_the_application_may_render_it() -> None:
    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        problem = environ[PROBLEM]
        start_response(problem.status_line, [("Content-Type", "text/html")])
        return [f"<h1>{problem.title}".encode()]

    guard = DBGuard(lost, ENGINE, render=page)
    assert call(guard, create_environ()) == (
        "503 Service Unavailable",
        {"Content-Type": "text/html"},
        b"<h1>Database unavailable",
    )


@pytest.mark.parametrize("started", [False, True])
def test_a_page_that_fails_is_not_missed(started: bool, caplog: pytest.LogCaptureFixture) -> None:
    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if started:
            start_response("200 OK", [])
        raise LookupError("no template")

    status, _, body = call(DBGuard(lost, ENGINE, render=page), create_environ())
    assert status == "503 Service Unavailable"
    assert json.loads(body)["type"] == UNAVAILABLE.type
    assert "no template" in caplog.text


def test_a_page_that_fails_half_way_is_not_missed_either() -> None:
    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"half of it"
        raise LookupError("no template")

    status, _, body = call(DBGuard(lost, ENGINE, render=page), create_environ())
    assert status == "503 Service Unavailable"
    assert json.loads(body)["type"] == UNAVAILABLE.type


# 409


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    text: Mapped[str]
    __mapper_args__ = {"version_id_col": version}


@pytest.mark.parametrize(("settings", "status"), [({}, "409 Conflict"), ({"statuses": False}, "")])
def test_a_stale_update_is_a_conflict(settings: dict[str, Any], status: str) -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Note(id=1, text="a"))
        session.commit()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(engine) as session:
            note = session.get_one(Note, 1)
            session.execute(text("update note set version = version + 1"))
            note.text = "b"
            session.commit()
        return []

    guard = DBGuard(app, engine, **settings)
    environ = create_environ(method="POST")
    if status:
        seen, headers, body = call(guard, environ)
        assert (seen, json.loads(body)["type"]) == (status, CONFLICT.type)
        assert "Retry-After" not in headers
    else:
        with pytest.raises(StaleDataError):
            call(guard, environ)
    engine.dispose()


def test_an_integrity_error_is_the_applications() -> None:
    engine = create_engine("sqlite://")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.begin() as connection:
            connection.execute(text("create table t (a int unique)"))
            connection.execute(text("insert into t values (1), (1)"))
        return []

    with pytest.raises(exc.IntegrityError):
        call(DBGuard(app, engine), create_environ())
    engine.dispose()


# The body of the request is read before


class Socket(io.BytesIO):
    """A server's input, on which reading past the body's end would wait for ever."""

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert 0 <= size <= len(self.getbuffer()) - self.tell()
        return super().read(size)


def posted(stream: io.BytesIO, length: str, app: WSGIApplication = lost, **more: Any) -> int:
    """How much of the request's body was read when the answer was there."""
    environ = {**create_environ(method="POST"), "wsgi.input": stream, "CONTENT_LENGTH": length, **more}
    assert call(DBGuard(app, ENGINE), environ)[0] == "503 Service Unavailable"
    return stream.tell()


@pytest.mark.parametrize("size", [0, 1, 100_000, 1_000_000])
@pytest.mark.parametrize("before", [0, 1])
def test_the_body_is_read_before_the_answer(size: int, before: int) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgi.input"].read(min(before, size))
        return lost(environ, start_response)

    assert posted(Socket(bytes(size)), str(size), app) == size


def test_after_a_second_run_that_reads_less_the_body_is_read_as_well() -> None:
    runs: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not runs:
            environ["wsgi.input"].read(60)
        runs.append(1)
        return lost(environ, start_response)

    stream = Socket(bytes(100))
    environ = {**create_environ(), "wsgi.input": stream, "CONTENT_LENGTH": "100"}
    assert call(DBGuard(app, ENGINE), environ)[0] == "503 Service Unavailable"
    assert (len(runs), stream.tell()) == (2, 100)


def test_no_more_than_a_mebibyte_is_read() -> None:
    assert posted(Socket(bytes(3 << 20)), str(3 << 20)) == 1 << 20


def test_a_next_request_on_the_connection_is_left_alone() -> None:
    assert posted(io.BytesIO(b"body" + b"GET / HTTP/1.1"), "4") == 4


def test_a_chunked_body_is_read_where_the_server_tells_its_end() -> None:
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked"}
    assert posted(io.BytesIO(bytes(1000)), "", lost, **chunked) == 0
    assert posted(io.BytesIO(bytes(1000)), "", lost, **chunked, **{"wsgi.input_terminated": True}) == 1000


@pytest.mark.parametrize("length", ["nonsense", "-1"])
def test_a_length_that_is_none_is_not_believed(length: str) -> None:
    assert posted(io.BytesIO(b"body"), length) == 0


@pytest.mark.parametrize("error", [ConnectionResetError, ValueError, RuntimeError])
def test_a_client_that_went_away_is_no_error(error: type[Exception]) -> None:
    class Gone(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise error

    drain(RecordedInput(Gone(), 10, 100), {"CONTENT_LENGTH": "100"})
