"""One request as a server makes it, and applications that lose their connection in the middle of it.

Example::

    faults = Faults(postgres)

    def app(environ, start_response):
        with engine.connect() as connection:
            found = faults.strike(connection)          # the first time its server process ends here
        start_response("200 OK", PLAIN)
        return [found.encode()]

    status, headers, body = call(DBGuard(app, engine), create_environ())
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard

from .postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["KEY", "PLAIN", "ApplicationError", "Faults", "Site", "call", "posted"]

KEY = "wsgi_dbguard.request"
PLAIN = [("Content-Type", "text/plain")]
BACKEND = text("select pg_backend_pid()")


class ApplicationError(Exception):
    """Of the application's own."""


class Faults:
    """Loses a connection in the middle of a request, the first `times` times that it is asked to."""

    def __init__(self, postgres: PostgreSQL, times: int = 1) -> None:
        self.postgres = postgres
        self.left = times
        self.attempts = 0

    def strike(self, connection: Connection | Session) -> str:
        self.attempts += 1
        pid = connection.scalar(BACKEND)
        if self.left:
            self.left -= 1
            self.postgres.terminate(pid)
        return str(connection.scalar(text("select 'well'")))


class Site:
    """An application that does `work` with an engine, and loses a connection after it, in its first run only."""

    def __init__(self, postgres: PostgreSQL, engine: Engine, work: Callable[[Engine], object]) -> None:
        self.faults = Faults(postgres)
        self.engine = engine
        self.work = work
        self.runs = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.runs += 1
        self.work(self.engine)
        if self.runs == 1:
            with self.engine.connect() as connection:
                self.faults.strike(connection)
        start_response("200 OK", PLAIN)
        return [b"well"]


def call(app: WSGIApplication, environ: WSGIEnvironment) -> tuple[str, dict[str, str], bytes]:
    """What a server would get of `app`: status, headers, body. It is allowed to start once only."""
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


def posted(app: WSGIApplication, engine: Engine, **more: Any) -> tuple[str, str | None, bool]:
    """A POST to `app` with ``replay="uncommitted"``: status, the problem's type, whether there is a Retry-After.

    `more`: of environ.
    """
    guarded = DBGuard(app, engine, replay="uncommitted")
    status, headers, body = call(guarded, {**create_environ(method="POST"), **more})
    return status, json.loads(body)["type"] if status[0] == "5" else None, "Retry-After" in headers
