"""A request ends once, whatever becomes of its body, and counts its checkouts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine
from werkzeug.test import Client, create_environ

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.bodies import Body, ignore, opened, returns
from wsgi_dbguard.lab.exchanges import KEY, ApplicationError
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.request import Request, current

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    assert current.get() is None
    yield
    assert current.get() is None


# Its end


@pytest.mark.parametrize("body", [[b"a"], (), b"a"])
def test_a_complete_body_ends_the_request_when_it_is_returned(body: Any) -> None:
    assert opened(returns(body))[1].ended is not None


def test_a_body_ends_the_request_at_close_and_once() -> None:
    body, request = opened(returns(Body(b"one", b"two")))
    assert list(body) == [b"one", b"two"]
    assert request.ended is None
    assert "running" in repr(request)
    body.close()
    assert request.failure is None
    ended = request.ended
    assert ended is not None
    body.close()
    assert request.ended == ended
    assert request.seconds == ended - request.started
    assert repr(request).startswith(f"<Request GET /path ended {request.seconds:.3f}s checkouts=0")


@pytest.mark.parametrize("taken", [0, 1])
def test_a_client_that_went_away_ends_the_request(taken: int) -> None:
    made = Body(b"one", b"two")
    body, request = opened(returns(made))
    for _ in range(taken):
        next(body)
    body.close()
    assert request.ended is not None
    assert request.failure is None
    assert made.seen[-1] == ("close", request)


def test_a_client_that_went_away_closes_a_generator() -> None:
    seen: list[Request | None] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            seen.append(current.get())

    body, request = opened(app)
    assert next(body) == b"one"
    body.close()
    assert seen == [request]
    assert request.ended is not None


def test_a_body_without_close_ends_its_request_at_close() -> None:
    body, request = opened(returns(iter([b"one"])))
    assert list(body) == [b"one"]
    body.close()
    assert request.ended is not None


@pytest.mark.parametrize("error", [ApplicationError, KeyboardInterrupt, SystemExit])
def test_an_application_that_raises_ends_the_request(error: type[BaseException]) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise error

    environ = create_environ()
    with pytest.raises(error):
        opened(app, environ)
    assert environ[KEY].failure is error
    assert environ[KEY].ended is not None


@pytest.mark.parametrize("where", ["iter", "next"])
def test_a_body_that_raises_at_its_first_step_is_closed_and_ends_the_request(where: str) -> None:
    made, environ = Body(b"one", failing=where), create_environ()
    with pytest.raises(ApplicationError, match=where):
        opened(returns(made), environ)
    request = environ[KEY]
    assert [seen for seen in made.seen if seen[0] == "close"] == [("close", request)]
    assert request.ended is not None
    assert request.failure is ApplicationError


@pytest.mark.parametrize(("where", "chunks"), [("second", 1), ("finally", 2)])
def test_a_body_that_raises_later_ends_the_request_at_close(where: str, chunks: int) -> None:
    class Later(Body):
        def __iter__(self) -> Iterator[bytes]:
            try:
                yield b"one"
                self._step("second")
                yield b"two"
            finally:
                self._step("finally")

    body, request = opened(returns(Later(failing=where)))
    assert [next(body) for _ in range(chunks)] == [b"one", b"two"][:chunks]
    with pytest.raises(ApplicationError, match=where):
        list(body)
    assert request.ended is None
    body.close()
    assert request.ended is not None
    assert request.failure is ApplicationError


def test_a_close_that_raises_ends_the_request_and_the_error_propagates() -> None:
    body, request = opened(returns(Body(b"one", failing="close")))
    list(body)
    for _ in range(2):
        with pytest.raises(ApplicationError, match="close"):
            body.close()
        assert current.get() is None
    assert request.ended is not None
    assert request.failure is ApplicationError


def test_the_first_failure_counts() -> None:
    class Worse(Body):
        def close(self) -> None:
            raise RuntimeError

    body, request = opened(returns(Worse(b"one", failing="finally")))
    with pytest.raises(ApplicationError):
        list(body)
    with pytest.raises(RuntimeError):
        body.close()
    assert request.failure is ApplicationError


def test_of_two_failures_at_the_first_step_the_first_one_is_raised_and_the_other_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Worse(Body):
        def close(self) -> None:
            raise RuntimeError("at close")

    environ = create_environ()
    with pytest.raises(ApplicationError):
        opened(returns(Worse(b"one", failing="next")), environ)
    assert environ[KEY].failure is ApplicationError
    assert environ[KEY].ended is not None
    assert "RuntimeError: at close" in caplog.text


def test_a_failure_that_is_false_counts() -> None:
    class Empty(Exception):
        def __len__(self) -> int:
            return 0

    request = Request({})
    request.fail(Empty())
    assert request.failure is Empty
    assert repr(request).startswith("<Request ?  running")


# Its counts


@pytest.fixture
def engine(postgres: PostgreSQL) -> Iterator[Engine]:
    engine = create_engine(postgres.url(), pool_size=4)
    yield engine
    engine.dispose()


def checkout(engine: Engine, times: int = 1) -> None:
    for _ in range(times):
        with engine.connect():
            pass


def test_checkouts_are_counted_wherever_the_request_makes_them(engine: Engine) -> None:
    class LateBody:
        def __iter__(self) -> Iterator[bytes]:
            try:
                checkout(engine, 2)
                yield b"one"
                checkout(engine)
                yield b"two"
            finally:
                checkout(engine)

        def close(self) -> None:
            checkout(engine)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        checkout(engine, 3)
        return LateBody()

    environ = create_environ()
    guard = DBGuard(app, engine)
    body: Any = guard(environ, ignore)
    request = environ[KEY]
    assert request.checkouts == 5  # the first chunk is made
    assert next(body) == b"one"
    assert request.checkouts == 5
    checkout(engine)  # the server's own, or of another request
    assert list(body) == [b"two"]
    assert request.checkouts == 7
    body.close()
    assert request.checkouts == 8
    assert "checkouts=8 replaced=0" in repr(request)
    checkout(engine)
    assert request.checkouts == 8
    (pool,) = guard.stats()["pools"].values()
    assert pool["checkouts"] == 10


def test_checkouts_of_interleaved_requests_are_told_apart(engine: Engine) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for _ in range(3):
            checkout(engine, int(environ["PATH_INFO"][1:]))
            yield b""

    guard = DBGuard(app, engine)
    environs = [create_environ(f"/{n}") for n in (1, 2, 3)]
    bodies: list[Any] = [guard(environ, ignore) for environ in environs]
    for _ in range(4):
        for body in bodies:
            next(body, None)
    for body in bodies:
        body.close()
    assert [environ[KEY].checkouts for environ in environs] == [3, 6, 9]


def test_checkouts_of_a_subrequest_are_its_own(engine: Engine) -> None:
    counts: dict[str, int] = {}

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        checkout(engine)
        if environ["PATH_INFO"] == "/":
            with Client(guard).get("/sub") as response:
                assert response.data == b"/sub"
            checkout(engine)
        counts[environ["PATH_INFO"]] = environ[KEY].checkouts
        yield environ["PATH_INFO"].encode()

    guard = DBGuard(app, engine)
    with Client(guard).get("/") as response:
        assert response.data == b"/"
    assert counts == {"/": 2, "/sub": 1}


def test_a_replaced_connection_is_counted(engine: Engine, postgres: PostgreSQL) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            return [str(connection.connection.dbapi_connection.info.backend_pid).encode()]  # type: ignore[union-attr]

    guard = DBGuard(app, engine)
    environs = [create_environ(), create_environ()]
    pids = []
    for environ in environs:
        (pid,) = guard(environ, ignore)
        pids.append(int(pid))
        postgres.terminate(int(pid))
    assert pids[0] != pids[1]
    assert [(environ[KEY].checkouts, environ[KEY].replaced) for environ in environs] == [(1, 0), (1, 1)]
