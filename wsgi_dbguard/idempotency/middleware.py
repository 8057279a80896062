"""`Idempotent`: the WSGI middleware. See the package for what it does."""

from __future__ import annotations

import hashlib
import logging
import secrets
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from wsgi_dbguard import answers
from wsgi_dbguard.answers import Problem
from wsgi_dbguard.exchange import REQUEST
from wsgi_dbguard.request import Request

from .attempt import Attempt
from .body import ReadBody
from .claims import Claim
from .header import parse_key
from .problems import MALFORMED, MISSING
from .recorder import replay
from .store import Store, Stored, Unreachable
from .table import TABLE
from .watch import watch

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Idempotent"]

logger = logging.getLogger(__name__)

CLAIM = "wsgi_dbguard.idempotency"
Principal = Callable[["WSGIEnvironment"], str | bytes | None]

# A request that runs again is the same owner: the first run may have been unable to give its claim back.
_owners: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class Idempotent:
    """WSGI middleware that has a request with an Idempotency-Key done once, however often it is sent.

    Args:
        app: the WSGI application.
        engine: of the database in which the application writes, and the table of the keys is.
        principal: whose key it is, from environ, such as a user's id that the server or a middleware around this one
            has checked. Keys of different principals have nothing to do with each other. None for an application
            without users: then whoever knows a key gets its answer.
        methods: those that take a key; others pass.
        required: whether a request without a key is refused; or a function of environ that says so.
        lease: seconds after which another request may have the key of one that has not ended. Longer than the longest
            request takes, or that one is refused its COMMIT.
        table: the name of the table, see `create_table`.
        body_limit: how many bytes of a request's body are compared, and of an answer's are kept. Larger answers are
            not: who repeats the request is told that it was applied.
        retry_after: base of the jittered Retry-After, in seconds.

    Raises:
        TypeError: if `app` is not callable or `engine` is not an engine.
        ValueError: for a database that is not supported, or an impossible `lease`, `body_limit` or `retry_after`.
    """

    def __init__(
        self,
        app: WSGIApplication,
        engine: Engine,
        *,
        principal: Principal | None,
        methods: Iterable[str] = ("POST", "PATCH"),
        required: bool | Callable[[WSGIEnvironment], bool] = False,
        lease: float = 60.0,
        table: str = TABLE,
        body_limit: int = 65536,
        retry_after: float = 1.0,
    ) -> None:
        if not callable(app):
            raise TypeError(f"Idempotent() takes a WSGI application first, not {type(app).__name__}")
        if not isinstance(engine, Engine):
            raise TypeError(f"Idempotent() takes a SQLAlchemy Engine, not {type(engine).__name__}")
        if not 1 <= lease <= 86400:
            raise ValueError(f"lease={lease!r}: must be a number of seconds of at least 1 and at most 86400")
        if body_limit < 0 or not retry_after > 0:
            raise ValueError("body_limit must be 0 bytes or more, retry_after above 0 seconds")
        self.app = app
        self._store = Store(engine, table, lease)
        self._principal = principal
        self._methods = frozenset(methods)
        self._required = required
        self._limit = body_limit
        self._retry_after = retry_after
        watch(engine)

    def __repr__(self) -> str:
        return f"<Idempotent {self.app!r} on {self._store.engine!r}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("REQUEST_METHOD") not in self._methods or CLAIM in environ:
            return self.app(environ, start_response)
        header = environ.get("HTTP_IDEMPOTENCY_KEY")
        if header is None:
            required = self._required(environ) if callable(self._required) else self._required
            if not required:
                return self.app(environ, start_response)
        body = self._record(environ)
        result = self._result(header, body, environ, start_response)
        if isinstance(result, Problem | Stored):
            if body is not None:
                answers.drain(body, environ)
            if isinstance(result, Stored):
                return replay(result, start_response)
            return answers.answer(result, environ, start_response, self._retry_after)
        return result

    def _result(
        self, header: str | None, body: ReadBody | None, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes] | Problem | Stored:
        if header is None:
            return MISSING
        try:
            key = parse_key(header)
        except ValueError:
            return MALFORMED
        request: Request | None = environ.get(REQUEST)
        owner = secrets.token_hex(16)
        if request is not None:
            owner = _owners.setdefault(request, owner)
        claim = Claim(self._store, self._id(key, environ), owner)
        fingerprint = self._fingerprint(body, environ)
        try:
            found = self._store.claim(claim.id, fingerprint, owner)
        except Unreachable as error:
            # A claim whose INSERT was not answered may be there, but nothing was done with it.
            logger.warning("an Idempotency-Key could not be looked up: %s", error)
            return answers.UNAVAILABLE
        if found is not None:
            return found
        environ[CLAIM] = claim
        return Attempt(self._store, claim, fingerprint, start_response, request, self._limit).run(self.app, environ)

    def _id(self, key: str, environ: WSGIEnvironment) -> str:
        principal = None if self._principal is None else self._principal(environ)
        if principal is None:
            return _digest(key.encode())
        return _digest(key.encode(), principal.encode() if isinstance(principal, str) else principal)

    def _record(self, environ: WSGIEnvironment) -> ReadBody | None:
        """Have the body remembered as far as it is compared; None where there is none, or nobody tells its end."""
        length = environ.get("CONTENT_LENGTH", "")
        known = int(length) if length.isdecimal() else None
        if not known and not (known is None and environ.get("wsgi.input_terminated")):
            return None
        body = environ["wsgi.input"] = ReadBody(environ["wsgi.input"], self._limit, known)
        return body

    def _fingerprint(self, body: ReadBody | None, environ: WSGIEnvironment) -> str:
        """What tells this request from another one. Raises OSError if the client goes away."""
        content = bytearray()
        if body is not None:
            while len(content) < self._limit and (data := body.read(self._limit - len(content))):
                content += data
            body.rewind()
        names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "CONTENT_LENGTH")
        return _digest(*(environ.get(name, "").encode() for name in names), bytes(content))


def _digest(*parts: bytes) -> str:
    """sha256 of `parts`, each with its length before it: no two lists of parts look the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()
