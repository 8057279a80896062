"""What `DBGuard` answers itself under the prefix of its setting ``health``, and no application sees::

    DBGuard(application, health="/-/db")

- ``/-/db/livez``: 200 as long as the process answers. It never asks a database: a server that is restarted because its
  database is away comes back to a database that is away.
- ``/-/db/readyz``: 200 if each database can be reached, 503 if not (`readiness`), and from SIGTERM on (`worker`).
- ``/-/db/``: the page, of all workers of this server; as JSON for who prefers that (Accept). The worker that answers
  looks at its databases then, as for ``readyz``, so that the page is no older than its next refresh.

The first two tell one word, and ask for nothing. They are for a balancer or a supervisor beside the server, not for the
public: each ``readyz`` may cost a query. The page asks for the setting ``health_token``, if there is one: as a Bearer
token, or as the password of a browser's own prompt (any user name). So it is in no URL, and in no log of those.

There is nothing secret on it: addresses of databases, counts, and what happened in words of ours; no user, no password,
no SQL, no path of a request.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from wsgi_dbguard import worker
from wsgi_dbguard.pool import PoolGuard

from . import page, view
from .readiness import READY, Readiness
from .reporter import reporter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from wsgi_dbguard.middleware import DBGuard

__all__ = ["Health"]

_TEXT = "text/plain; charset=utf-8"
_UNREAD = 1 << 16  # bytes of a body that nobody asked for, read so that the server need not reset the connection


class Health:
    """A WSGI application for what lies under `prefix`. `guards` are those of the engines that `guard` looks after."""

    def __init__(
        self, guard: DBGuard, prefix: str, token: str | None, guards: Callable[[], Iterable[PoolGuard]]
    ) -> None:
        self.prefix = prefix
        self.reporter = reporter
        self._token = token
        self._readiness = Readiness(guards)
        reporter.install(guard, self._readiness)

    def owns(self, environ: WSGIEnvironment) -> bool:
        """Of a path that begins with the prefix: whether it is not one of the application's, such as /-/dbx."""
        return environ["PATH_INFO"][len(self.prefix) :][:1] in ("", "/")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        status, headers, body = self._answer(environ, method)
        headers += [
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if method not in ("GET", "HEAD"):
            _drop_body(environ)
        start_response(status, headers)
        return [] if method == "HEAD" else [body]

    def _answer(self, environ: WSGIEnvironment, method: str) -> tuple[str, list[tuple[str, str]], bytes]:
        path = environ["PATH_INFO"][len(self.prefix) :]
        if path not in ("", "/", "/livez", "/readyz"):
            return _plain("404 Not Found", "There is /livez, /readyz and /.")
        if method not in ("GET", "HEAD"):
            return _plain("405 Method Not Allowed", "GET or HEAD.", ("Allow", "GET, HEAD"))
        if path == "":
            # Relative, as RFC 9110 allows: what a proxy has put before the path is not known here.
            last = self.prefix.rpartition("/")[2]
            return _plain("308 Permanent Redirect", "", ("Location", f"{last}/"))
        if path == "/livez":
            return _plain("200 OK", "alive")
        if path == "/readyz":
            return self._readyz()
        if self._token is not None and not _knows(self._token, environ.get("HTTP_AUTHORIZATION", "")):
            return _plain(
                "401 Unauthorized", "The health_token of this server, as a Bearer token or as a password.",
                ("WWW-Authenticate", 'Basic realm="database health", charset="UTF-8"'),
                ("WWW-Authenticate", 'Bearer realm="database health"'),
            )  # fmt: skip
        return self._page(environ)

    def _readyz(self) -> tuple[str, list[tuple[str, str]], bytes]:
        state = "draining" if worker.is_ending() else self._readiness.state()
        if state == READY:
            return _plain("200 OK", READY)
        return _plain("503 Service Unavailable", state, ("Retry-After", "1"))

    def _page(self, environ: WSGIEnvironment) -> tuple[str, list[tuple[str, str]], bytes]:
        self._readiness.look()  # nobody waits for it: the page asks again soon
        document = view.document(self.reporter.workers(), time.time())
        headers = [("Vary", "Accept")]
        if _prefers_json(environ.get("HTTP_ACCEPT", "")):
            return "200 OK", [("Content-Type", "application/json"), *headers], json.dumps(document).encode()
        headers += [("Content-Type", "text/html; charset=utf-8"), *page.HEADERS]
        return "200 OK", headers, page.render(document).encode()


def _plain(status: str, text: str, *headers: tuple[str, str]) -> tuple[str, list[tuple[str, str]], bytes]:
    return status, [("Content-Type", _TEXT), *headers], f"{text}\n".encode()


def _knows(token: str, authorization: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    given = given.strip()
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), token.encode())


def _prefers_json(accept: str) -> bool:
    """Whether the Accept header wants JSON more than HTML."""
    wanted = {"application/json": 0.0, "text/html": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = [each.strip() for each in part.split(";")]
        if kind in wanted:
            wanted[kind] = max(wanted[kind], _quality(parameters))
    return wanted["application/json"] > wanted["text/html"]


def _quality(parameters: list[str]) -> float:
    for each in parameters:
        name, _, value = each.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _drop_body(environ: WSGIEnvironment) -> None:
    length: Any = environ.get("CONTENT_LENGTH") or "0"
    if length.isdecimal() and 0 < int(length) <= _UNREAD:
        try:
            environ["wsgi.input"].read(int(length))
        except Exception:  # the client went away: the server has errors of its own for that
            return
