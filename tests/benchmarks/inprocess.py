"""WSGI applications and requests within this process: what a request costs without a server around it.

To import this does not import the guard: see unguarded.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

from pools import wrap
from sqlalchemy import Engine, text
from sqlalchemy.orm import scoped_session, sessionmaker

__all__ = [
    "bare",
    "checkouts",
    "guarded",
    "in_session",
    "iterated",
    "on_connection",
    "serve",
    "streaming",
    "wrapped",
    "writing",
]

_HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "2")]
_STATEMENT = text("select 1")
_CHANGE = text("update counted set b = b + 1 where a = 1")


def bare(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """No database."""
    start_response("200 OK", _HEADERS)
    return [b"ok"]


class _Iterator:
    """As frameworks give back: an iterable of their own, with a close()."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None: ...


def iterated(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", _HEADERS)
    return _Iterator([b"ok"])


def streaming(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", _HEADERS)
    yield b"ok"


def checkouts(engine: Engine, count: int) -> Any:
    """An application with so many checkouts, and a statement in each."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for _ in range(count):
            with engine.connect() as connection:
                connection.execute(_STATEMENT)
        return bare(environ, start_response)

    return app


def in_session(engine: Engine, count: int) -> Any:
    """An application that sends `count` statements in one transaction of its Session."""
    session = scoped_session(sessionmaker(engine))

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for _ in range(count):
            session.execute(_STATEMENT)
        session.remove()
        return bare(environ, start_response)

    return app


def on_connection(engine: Engine, count: int) -> Any:
    """The same without an ORM."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with engine.connect() as connection:
            for _ in range(count):
                connection.execute(_STATEMENT)
        return bare(environ, start_response)

    return app


def writing(engine: Engine) -> Any:
    """An application that changes one row, and commits."""
    with engine.begin() as connection:
        connection.execute(text("create table if not exists counted (a int primary key, b bigint)"))
        connection.execute(text("replace into counted values (1, 0)"))

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with engine.begin() as connection:
            connection.execute(_CHANGE)
        return bare(environ, start_response)

    return app


def wrapped(contender: str, app: Any, engine: Engine) -> Any:
    """`app` as the contender has it."""
    return guarded(app, engine) if contender.startswith("guard") else wrap(contender, app, engine)


def guarded(app: Any, engine: Engine) -> Any:
    """`app` in a DBGuard that watches `engine` and no other: those of the other contenders are in this process too."""
    from wsgi_dbguard import DBGuard, registry

    with mock.patch.object(registry, "on_engine", lambda listener: listener(engine)):
        return DBGuard(app, engine)


def serve(app: Any) -> Callable[[], None]:
    """A request."""

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any: ...

    def request() -> None:
        body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.file_wrapper": list}, start_response)
        try:
            for _ in body:
                pass
        finally:
            if hasattr(body, "close"):
                body.close()

    return request
