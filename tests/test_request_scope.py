"""`wsgi_dbguard.request.current`: right in threads, greenlets and late bodies, and gone afterwards."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.test import Client, create_environ

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.bodies import ENGINE, Body, ignore, opened, returns
from wsgi_dbguard.lab.exchanges import KEY, ApplicationError
from wsgi_dbguard.request import Request, current

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    assert current.get() is None
    yield
    assert current.get() is None


def test_every_step_of_a_body_is_in_scope_and_nothing_between_them() -> None:
    made = Body(b"one", b"two")
    body, request = opened(returns(made))
    assert current.get() is None
    for _ in body:
        assert current.get() is None
    body.close()
    assert [name for name, _ in made.seen] == ["iter", "next", "next", "finally", "close"]
    assert {seen for _, seen in made.seen} == {request}


def test_interleaved_bodies_in_one_thread_see_their_own_requests() -> None:
    made = [Body(b"1", b"2", b"3") for _ in range(3)]
    calls = [opened(returns(each)) for each in made]
    for _ in range(4):
        for body, _ in calls:
            next(body, None)
    for body, _ in reversed(calls):
        body.close()
    for each, (_, request) in zip(made, calls, strict=True):
        assert [seen for _, seen in each.seen] == [request] * 6
        assert request.ended is not None


def test_a_request_inside_a_body_of_another_is_a_request_of_its_own() -> None:
    inner: list[tuple[Any, Request]] = []
    seen: list[Request | None] = []

    def outer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for _ in range(2):
            inner.append(opened(returns(Body(b"inner"))))
            seen.append(current.get())
            next(inner[-1][0])
            seen.append(current.get())
            yield b"outer"

    body, request = opened(outer)
    assert len(list(body)) == 2
    body.close()
    assert seen == [request] * 4
    assert len({request, *(each for _, each in inner)}) == 3
    for each, _ in inner:
        each.close()


def test_a_subrequest_by_werkzeugs_client_is_a_request_of_its_own() -> None:
    seen: dict[str, list[Request | None]] = {"/": [], "/sub": []}

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        start_response("200 OK", [("Content-Type", "text/plain")])
        seen[path].append(current.get())
        if path == "/":
            with Client(guard).get("/sub") as response:
                yield response.data
            seen[path].append(current.get())
        yield path.encode()
        seen[path].append(current.get())

    guard = DBGuard(app, ENGINE)
    with Client(guard).get("/") as response:
        assert response.data == b"/sub/"
    outer, inner = seen["/"][0], seen["/sub"][0]
    assert outer is not None
    assert inner is not None
    assert outer is not inner
    assert seen == {"/": [outer] * 3, "/sub": [inner] * 2}
    assert guard.stats()["requests"] == 2
    assert inner.ended is not None
    assert outer.ended is not None


def test_wrapped_twice_is_one_request() -> None:
    made = Body(b"one")
    inner = DBGuard(returns(made), ENGINE)
    outer = DBGuard(inner, ENGINE)
    environ = create_environ()
    body: Any = outer(environ, ignore)
    assert list(body) == [b"one"]
    body.close()
    assert (outer.stats()["requests"], inner.stats()["requests"]) == (1, 0)
    assert {seen for _, seen in made.seen} == {environ[KEY]}
    assert [name for name, _ in made.seen].count("close") == 1


def test_wrapped_twice_with_a_middleware_between_that_tries_again() -> None:
    attempts: list[Request | None] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        attempts.append(current.get())
        raise ApplicationError

    inner = DBGuard(app, ENGINE)

    def again(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for _ in range(2):
            with pytest.raises(ApplicationError):
                inner(environ, start_response)
        return []

    _, request = opened(again)
    assert attempts == [request] * 2


def test_an_environ_that_is_sent_again_from_outside_is_a_new_request() -> None:
    # an error page, made by a middleware around the guard
    seen: list[Request | None] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(current.get())
        return []

    guard = DBGuard(app, ENGINE)
    environ = create_environ("/missing")
    guard(environ, ignore)
    first = environ[KEY]
    guard({**environ, "PATH_INFO": "/error"}, ignore)
    assert seen[0] is first
    assert seen[1] not in (None, first)
    assert guard.stats()["requests"] == 2


def test_threads_see_their_own_requests() -> None:
    meet = threading.Barrier(4, timeout=60)
    wrong: list[object] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for _ in range(5):
            meet.wait()
            if current.get() is not environ[KEY]:
                wrong.append(current.get())
            yield b""

    def serve() -> None:
        body, request = opened(app)
        list(body)
        body.close()
        wrong.extend([current.get()] if current.get() is not None or request.ended is None else [])

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not meet.broken


def test_steps_in_different_contexts_are_in_scope() -> None:
    made = Body(b"one", b"two")
    body, request = contextvars.copy_context().run(opened, returns(made))
    assert contextvars.copy_context().run(next, body) == b"one"
    assert contextvars.copy_context().run(list, body) == [b"two"]
    contextvars.copy_context().run(body.close)
    assert {seen for _, seen in made.seen} == {request}


def test_a_copied_context_takes_the_request_along() -> None:
    seen: list[Request | None] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def work(run: Callable[..., None]) -> None:
            thread = threading.Thread(target=run, args=(lambda: seen.append(current.get()),))
            thread.start()
            thread.join()

        work(contextvars.copy_context().run)
        work(lambda function: function())
        return []

    _, request = opened(app)
    assert seen[0] is request
    if not getattr(sys.flags, "thread_inherit_context", False):  # Python 3.14, free-threaded
        assert seen[1] is None


def test_the_applications_own_context_variables_reach_its_body() -> None:
    own = contextvars.ContextVar("own", default="unset")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        own.set("set")
        return (own.get().encode() for _ in range(2))

    def serve() -> list[bytes]:
        return list(opened(app)[0])

    assert contextvars.copy_context().run(serve) == [b"set"] * 2


def test_greenlets_see_their_own_requests() -> None:
    code = """
from gevent import monkey; monkey.patch_all()
import gevent
from sqlalchemy import create_engine
from wsgi_dbguard import DBGuard
from wsgi_dbguard.request import current

switches = []

def check(environ):
    before = len(switches)
    switches.append(environ["n"])
    gevent.sleep(0)
    assert current.get() is environ["wsgi_dbguard.request"], environ
    return len(switches) - before > 1  # another one ran meanwhile

def app(environ, start_response):
    check(environ)
    return body(environ)

def body(environ):
    for _ in range(5):
        yield check(environ)
        gevent.sleep(0)

guard = DBGuard(app, create_engine("sqlite://"))

def serve(n):
    environ = {"REQUEST_METHOD": "GET", "n": n}
    body = guard(environ, None)
    switched = 0
    for each in body:
        assert current.get() is None
        gevent.sleep(0)
        switched += each
    body.close()
    assert current.get() is None
    assert environ["wsgi_dbguard.request"].ended
    return switched

jobs = [gevent.spawn(serve, n) for n in range(10)]
gevent.joinall(jobs, raise_error=True)
print(sum(job.value for job in jobs) > 0, guard.stats()["requests"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    assert (done.stdout, done.stderr) == ("True 10\n", "")
