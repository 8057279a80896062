"""`DBGuard` itself: what it wraps and what not, what it keeps, its arguments, what it tells.

That no byte of a response changes is shown in test_transparency.py, the life of a request in test_request.py.
"""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import flask
import pytest
from sqlalchemy import create_engine
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard, GuardConfig, SettingError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Named, since DBGuard(app) would guard the engines of all other tests of this process as well.
ENGINE = create_engine("sqlite://")


class ApplicationError(Exception):
    pass


def a_list(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"one"]


def returns(make: Callable[[], Any]) -> WSGIApplication:
    return lambda environ, start_response: make()


def ignore(*args: Any) -> Any:
    """A start_response."""


def test_headers_and_exc_info_are_the_very_objects() -> None:
    headers = [("Content-Type", "text/plain")]
    heard: list[tuple[Any, ...]] = []
    sent: list[bytes] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", headers)(b"written")
        try:
            raise ApplicationError
        except ApplicationError:
            start_response("500 No", headers, sys.exc_info())
        return []

    def start_response(*args: Any) -> Any:
        heard.append(args)
        return sent.append

    DBGuard(app, ENGINE)(create_environ(), start_response)
    assert sent == [b"written"]
    assert heard[0][1] is heard[1][1] is headers
    assert heard[1][2][0] is ApplicationError


@pytest.mark.parametrize("made", [[b"a"], (b"a",), [], b"a"])
def test_a_complete_body_is_not_wrapped(made: Any) -> None:
    assert DBGuard(returns(lambda: made), ENGINE)(create_environ(), ignore) is made


def test_the_first_chunk_is_out_before_the_second_is_made() -> None:
    made: list[bytes] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        for chunk in (b"one", b"two"):
            made.append(chunk)
            yield chunk

    started: list[str] = []
    body = iter(DBGuard(app, ENGINE)(create_environ(), lambda status, *more: started.append(status)))  # type: ignore[arg-type]
    assert (made, started) == ([b"one"], ["200 OK"])
    assert next(body) == b"one"
    assert made == [b"one"]
    assert list(body) == [b"two"]


def test_an_iterator_of_its_own_is_let_go_before_close() -> None:
    # as by a server's loop over the unguarded body
    order: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            try:
                yield b"one"
                yield b"two"
            finally:
                order.append("iterator")

        def close(self) -> None:
            order.append("close")

    body: Any = DBGuard(returns(Body), ENGINE)(create_environ(), ignore)
    assert next(iter(body)) == b"one"
    body.close()
    assert order == ["iterator", "close"]
    assert list(body) == []


def test_a_raising_application_keeps_nothing_alive() -> None:
    """No circle of references: what its frames and environ hold, such as a connection, goes when the error goes."""

    class Resource:
        pass

    kept: list[weakref.ref[Resource]] = []

    def hold(environ: WSGIEnvironment) -> Resource:
        local = environ["a.resource"] = Resource()
        kept.append(weakref.ref(local))
        return local

    def at_once(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        local = hold(environ)
        raise ApplicationError(local)

    def later(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        local = hold(environ)
        yield b"one"
        raise ApplicationError(local)

    def well(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        yield repr(hold(environ)).encode()

    def run(app: WSGIApplication) -> None:
        try:
            body: Any = DBGuard(app, ENGINE)(create_environ(), ignore)
            try:
                list(body)
            finally:
                body.close()
        except ApplicationError:
            pass

    gc.disable()
    try:
        for app in (at_once, later, well):
            run(app)
            assert kept.pop()() is None, app
    finally:
        gc.enable()


# wsgi.file_wrapper


class FileWrapper:
    """A class, as gunicorn's and the standard library's."""

    def __init__(self, filelike: Any, blksize: int = 8192) -> None:
        self.filelike = filelike
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.filelike.read(3), b"")


def as_it_is(filelike: Any, blksize: int = 8192) -> Any:
    """A function, as uWSGI's."""
    return filelike


@pytest.mark.parametrize("wrapper", [FileWrapper, as_it_is])
def test_a_file_comes_back_as_the_very_object(wrapper: Callable[..., Any]) -> None:
    made: list[Any] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        made.append(environ["wsgi.file_wrapper"](io.BytesIO(b"content"), blksize=100))
        body: Iterable[bytes] = made[0]
        return body

    environ = {**create_environ(), "wsgi.file_wrapper": wrapper}
    assert DBGuard(app, ENGINE)(environ, ignore) is made[0]
    # what gunicorn asks
    assert isinstance(made[0], environ["wsgi.file_wrapper"])
    assert not isinstance([b""], environ["wsgi.file_wrapper"])


@pytest.mark.parametrize("wrapper", [FileWrapper, as_it_is])
def test_flasks_file_comes_back_as_the_servers_object(wrapper: Callable[..., Any]) -> None:
    environ = {**create_environ("/file"), "wsgi.file_wrapper": wrapper}
    app = flask.Flask(__name__)
    app.add_url_rule("/file", view_func=lambda: flask.send_file(__file__))
    body: Any = DBGuard(app, ENGINE)(environ, ignore)
    try:
        assert isinstance(body, FileWrapper if wrapper is FileWrapper else io.BufferedReader)
    finally:
        body.close()


@pytest.mark.parametrize("wrapper", [FileWrapper, as_it_is])
def test_what_is_put_around_a_file_is_no_file(wrapper: Callable[..., Any]) -> None:
    class Around:
        def __init__(self, file: Iterable[bytes]) -> None:
            self.file = file

        def __iter__(self) -> Iterator[bytes]:
            return iter(self.file)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return Around(environ["wsgi.file_wrapper"](io.BytesIO(b"abcdef")))

    body = DBGuard(app, ENGINE)({**create_environ(), "wsgi.file_wrapper": wrapper}, ignore)
    assert not isinstance(body, Around)
    assert b"".join(body) == b"abcdef"


# The process


def python(code: str) -> str:
    """The output of a Python of its own, where `code` may guard all engines, or fork."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_fork_that_python_did_not_see_is_noticed_at_the_next_request() -> None:
    seen = python("""
import ctypes, os
from sqlalchemy import create_engine
from wsgi_dbguard import DBGuard, fork

guard = DBGuard(lambda environ, start_response: [str(fork.pid).encode()], create_engine("sqlite://"))
parent = os.getpid()
child = ctypes.PyDLL(None).fork()
if child == 0:
    before = fork.pid == parent
    body = guard({"REQUEST_METHOD": "GET"}, None)
    os.write(1, repr((before, body == [str(os.getpid()).encode()])).encode())
    os._exit(0)
os.waitpid(child, 0)
""")
    assert seen == "(True, True)"


def test_without_engines_all_are_guarded_those_to_come_as_well() -> None:
    seen = python("""
from sqlalchemy import create_engine
first = create_engine("postgresql+psycopg2://host/first")
from wsgi_dbguard import DBGuard, SettingError
guard = DBGuard(lambda environ, start_response: [], ping_after=30.0)
second = create_engine("postgresql+psycopg2://host/second")
print(sorted(guard.stats()["pools"]), "pools=all" in repr(guard))
DBGuard(guard, ping_after=30.0)
try:
    DBGuard(guard, ping_after=31.0)
except SettingError as error:
    print("other settings" in str(error))
""")
    assert seen == "['postgresql+psycopg2://host/first', 'postgresql+psycopg2://host/second'] True\nTrue"


# The constructor


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((None,), {}, TypeError, "takes a WSGI application first, not NoneType"),
        ((ENGINE, a_list), {}, TypeError, "takes a WSGI application first, not Engine"),
        (("wsgi:app",), {}, TypeError, "takes a WSGI application first, not str"),
        ((a_list, "sqlite://"), {}, TypeError, "takes a SQLAlchemy Engine, not str"),
        ((a_list, GuardConfig()), {}, TypeError, "takes a SQLAlchemy Engine, not GuardConfig"),
        ((a_list, ENGINE), {"config": GuardConfig(), "ping_after": 1.0}, TypeError, "either config or single settings"),
        ((a_list, ENGINE), {"config": {"ping_after": 1.0}}, TypeError, "config must be a GuardConfig, not dict"),
        ((a_list, ENGINE), {"ping_afer": 1.0}, SettingError, "unknown setting ping_afer; there are: ping_after"),
        ((a_list, ENGINE), {"ping_after": -1}, SettingError, "ping_after=-1: must be a number of seconds"),
        ((a_list, ENGINE), {"keepalive": (1, 2)}, SettingError, r"keepalive=\(1, 2\): must be three whole numbers"),
    ],
)
def test_misuse_is_refused(
    arguments: tuple[Any, ...], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DBGuard(*arguments, **settings)


def test_an_impossible_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_DBGUARD_PING_TIMEOUT", "0")
    with pytest.raises(SettingError, match="WSGI_DBGUARD_PING_TIMEOUT='0': must be"):
        DBGuard(a_list, ENGINE)


def test_stats_and_repr_tell_requests_and_pools() -> None:
    one, two = create_engine("sqlite:///same"), create_engine("sqlite:///same")
    guard = DBGuard(a_list, one, two, one)
    for _ in range(3):
        guard(create_environ(), ignore)
    stats = guard.stats()
    assert (stats["pid"], stats["requests"]) == (os.getpid(), 3)
    assert list(stats["pools"]) == ["sqlite:///same", "sqlite:///same #2"]
    assert "a_list" in repr(guard)
    assert repr(guard).count("PoolGuard sqlite:///same") == 3
