"""`DBGuard` is not to be seen: not by wsgiref.validate, not by a server, not in a single byte of a response.

The applications here are also served by real servers, which load them from this very file.
"""

from __future__ import annotations

import io
import os
import re
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest
from sqlalchemy import create_engine

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.process import Child, wait_until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Named, since DBGuard(app) would guard the engines of all other tests of this process as well.
ENGINE = create_engine("sqlite://")
PLAIN = (
    ("X-Second", "2"),
    ("Content-Type", "text/plain"),
    ("Set-Cookie", "b=1"),
    ("set-cookie", "a=2"),
)  # a list of its own for each: servers add to it


class ApplicationError(Exception):
    pass


# Applications, each doing one thing that PEP 3333 allows, or failing in one way.


def a_list(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    return [b"one", b"", b"two"]


def a_tuple(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("299 Very well", list(PLAIN))
    return (b"only",)


def empty_list(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("204 No Content", [("X-First", "1"), ("X-Second", "2")])
    return []


def empty_generator(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    yield from ()


def generator(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    yield b"one"
    yield b""
    yield b"two"


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
    return iter([body])


def head(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, ("Content-Length", "3")])
    return iter([] if environ["REQUEST_METHOD"] == "HEAD" else [b"one"])


def written(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", list(PLAIN))
    write(b"one")
    write(b"two")
    return []


def written_then_yielded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", list(PLAIN))
    write(b"one")
    return iter([b"two"])


def changed_its_mind(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    try:
        raise ApplicationError
    except ApplicationError:
        start_response("503 Sorry", [("Content-Type", "text/plain")], sys.exc_info())
    return iter([b"sorry"])


def changed_its_mind_too_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    yield b"one"
    try:
        raise ApplicationError("too late")
    except ApplicationError:
        start_response("503 Sorry", [("Content-Type", "text/plain")], sys.exc_info())
    yield b"never"


class Chunks:
    """With __iter__ alone: no close(), no length."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks


class ClosingChunks(Chunks):
    def close(self) -> None:
        self.chunks = ()


class SizedChunks(Chunks):
    """A server may give it a Content-Length when it is one chunk."""

    def __len__(self) -> int:
        return len(self.chunks)


class BadlyClosingChunks(Chunks):
    def close(self) -> None:
        raise ApplicationError("at close")


class Recording(ClosingChunks):
    """Answers for what it wraps, and has no AttributeError for what that does not have."""

    def __getattr__(self, name: str) -> object:
        return vars(self)["recorded"][name]


class ListWithClose(list[bytes]):
    def close(self) -> None:
        self.clear()


def returns(make: Callable[[], Any]) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(PLAIN))
        body: Iterable[bytes] = make()
        return body

    return application


def file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    wrapper = environ.get("wsgi.file_wrapper")
    opened = Path(__file__).open("rb")  # noqa: SIM115
    body: Iterable[bytes] = opened if wrapper is None else wrapper(opened, 1024)
    return body


class FileWrapper:
    """A class, as gunicorn's and the standard library's."""

    def __init__(self, filelike: Any, blksize: int = 8192) -> None:
        self.filelike = filelike
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.filelike.read(3), b"")


class Readable:
    """The least that a file_wrapper takes: read() alone (PEP 3333)."""

    def __init__(self, content: bytes) -> None:
        self.read = io.BytesIO(content).read


def readable(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    wrapper = environ.get("wsgi.file_wrapper", FileWrapper)
    body: Iterable[bytes] = wrapper(Readable(b"onetwo"), 3)
    return body


def raises_first(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise ApplicationError("at first")


def raises_after_start(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    raise ApplicationError("after start_response")


def raises_in_its_first_step(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise ApplicationError("in the first step")
    yield b"never"


def raises_halfway(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(PLAIN))
    yield b"one"
    raise ApplicationError("halfway")


def flask_application() -> flask.Flask:
    app = flask.Flask(__name__)

    @app.get("/page")
    def page() -> flask.Response:
        response = flask.make_response("page")
        response.set_cookie("a", "b")
        return response

    @app.get("/stream")
    def stream() -> flask.Response:
        return flask.Response(flask.stream_with_context(flask.request.path for _ in range(2)))

    @app.get("/file")
    def send() -> flask.Response:
        return flask.send_file(__file__, mimetype="text/plain", etag=False)

    @app.get("/error")
    def error() -> str:
        raise ApplicationError("a view")

    app.secret_key = "no secret"
    return app


def flask_at(path: str) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return flask_application()({**environ, "PATH_INFO": path}, start_response)

    return application


APPLICATIONS: dict[str, WSGIApplication] = {
    each.__name__: each
    for each in (
        a_list, a_tuple, empty_list, empty_generator, generator, echo, head, written, written_then_yielded,
        changed_its_mind, changed_its_mind_too_late, file, readable, raises_first, raises_after_start,
        raises_in_its_first_step, raises_halfway,
    )
} | {
    "iterable": returns(lambda: Chunks(b"one", b"two")),
    "closing_iterable": returns(lambda: ClosingChunks(b"one", b"two")),
    "answers_for_another": returns(lambda: Recording(b"one", b"two")),
    "one_sized_chunk": returns(lambda: SizedChunks(b"one")),
    "two_sized_chunks": returns(lambda: SizedChunks(b"one", b"two")),
    "list_with_close": returns(lambda: ListWithClose([b"one"])),
    "iterator": returns(lambda: iter([b"one", b"two"])),
    "raises_at_close": returns(lambda: BadlyClosingChunks(b"one")),
    **{f"flask_{path}": flask_at(f"/{path}") for path in ("page", "stream", "file", "error", "missing")},
}  # fmt: skip
# What PEP 3333 does not allow, and servers answer one way or the other.
UNLAWFUL: dict[str, WSGIApplication] = {
    "bytes": returns(lambda: b"uWSGI sends them"),
    "nothing": returns(lambda: None),
    "text": returns(lambda: iter(["text"])),
    "no_start": lambda environ, start_response: [b"never"],
}


def served(name: str) -> WSGIApplication:
    return {**APPLICATIONS, **UNLAWFUL}[name]


# What the real servers load.
_guarded = {name: DBGuard(served(name), ENGINE) for name in (*APPLICATIONS, *UNLAWFUL)}


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """``/guarded/…`` and ``/unguarded/…``, the same applications."""
    _, which, name = environ["PATH_INFO"].split("/")
    return (_guarded[name] if which == "guarded" else served(name))(environ, start_response)


def environment(**more: Any) -> WSGIEnvironment:
    environ: WSGIEnvironment = {"QUERY_STRING": "", "wsgi.input": io.BytesIO(), **more}
    setup_testing_defaults(environ)
    return environ


def _undated(answer: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", answer)


def exchange(app: WSGIApplication, method: str, *, body: bytes = b"posted") -> tuple[bytes, str]:
    """Every byte that the standard library's server sends, and what it says of errors, but for the stack."""
    answer, errors = io.BytesIO(), io.StringIO()
    environ = environment(REQUEST_METHOD=method, CONTENT_LENGTH=str(len(body)))
    handler = SimpleHandler(io.BytesIO(body), answer, errors, environ)
    with suppress(TypeError):  # its own, after an error in close(), which it has reported
        handler.run(app)
    return _undated(answer.getvalue()), "\n".join(
        re.findall(r"^\S*(?:Error|Exception).*$", errors.getvalue(), re.MULTILINE)
    )


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("name", [*APPLICATIONS, *UNLAWFUL])
def test_every_byte_is_the_applications(name: str, method: str) -> None:
    unguarded = exchange(served(name), method)
    assert exchange(DBGuard(served(name), ENGINE), method) == unguarded
    assert unguarded[0]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_validator_finds_nothing_on_either_side(name: str, method: str) -> None:
    inner = validator(APPLICATIONS[name])
    answer, errors = exchange(validator(DBGuard(inner, ENGINE)), method)
    assert "AssertionError" not in errors
    # and what it finds of an iterator that is never closed, pytest reports as an unraisable exception
    assert (answer, errors) == exchange(validator(inner), method)


# The real servers


def _raw(port: int, target: str, method: str) -> bytes:
    """The whole answer as it comes over the wire, chunk borders and all, but for the time of day."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6\r\n\r\nposted".encode()
        )
        answer = b""
        try:
            while received := connection.recv(65536):
                answer += received
        except ConnectionResetError:  # of a server that closes without reading all
            pass
    return _undated(answer)


SERVERS = {
    "gunicorn sync": ("gunicorn", "--worker-class=sync"),
    "gunicorn gthread": ("gunicorn", "--worker-class=gthread", "--threads=2"),
    "gunicorn gevent": ("gunicorn", "--worker-class=gevent"),
    "uwsgi": ("uwsgi", "--enable-threads"),
    "uwsgi sending files by itself": ("uwsgi", "--enable-threads", "--offload-threads=1"),
}
COMMON = {
    "gunicorn": ("--bind=127.0.0.1:0", "--no-control-socket", "--pythonpath={here}", "test_transparency"),
    "uwsgi": (
        "--http-socket=127.0.0.1:0",
        "--master",
        "--die-on-term",
        "--pythonpath={here}",
        "-w",
        "test_transparency",
    ),
}
LISTENING = re.compile(r"(?:Listening at: http://|bound to TCP address )127\.0\.0\.1:(\d+)")


# What the servers make of an application that takes a response back: both have begun it at the first start_response(),
# and send headers of both (gunicorn), or the headers and no body (uWSGI). The guard begins only the response that
# counts.
BETTER = {"gunicorn": {"changed_its_mind"}, "uwsgi": {"changed_its_mind", "raises_after_start", "nothing"}}


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
def test_a_real_server_sends_the_same_bytes(server: str, tmp_path: Path) -> None:
    program, *options = SERVERS[server]
    common = [option.format(here=Path(__file__).parent) for option in COMMON[program]]
    command = [sysconfig.get_path("scripts") + f"/{program}", *options, *common]
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with Child(command, log=tmp_path / "log", env=environ, cwd=tmp_path) as child:
        found = wait_until(lambda: LISTENING.findall(child.output()), timeout=60, what="the server")
        port = int(found[0])
        different = [
            (method, name)
            for method in ("GET", "HEAD", "POST")
            for name in {*APPLICATIONS, *UNLAWFUL} - BETTER[program]
            if _raw(port, f"/guarded/{name}", method) != _raw(port, f"/unguarded/{name}", method)
        ]
        assert different == [], child.output()
        for name in ("a_list", "generator", "written"):
            assert b"onetwo" in _raw(port, f"/guarded/{name}", "GET").replace(b"\r\n3\r\n", b""), child.output()
        assert _raw(port, "/guarded/file", "GET").count(b"def ") == Path(__file__).read_bytes().count(b"def ")
