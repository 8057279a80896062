"""`Idempotent`: the WSGI middleware. See the package for what it does."""

from __future__ import annotations

import hashlib
import secrets
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from .. import answers
from ..answers import Problem
from ..replay import RecordedInput
from .attempt import REQUEST, Attempt, replay
from .claims import Claim, watch
from .header import parse_key
from .problems import MALFORMED, MISSING, UNSETTLED
from .store import Store, Stored, Unreachable
from .table import TABLE

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Idempotent"]

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
            return self._answer(MISSING, environ, start_response) if required else self.app(environ, start_response)
        try:
            key = parse_key(header)
        except ValueError:
            return self._answer(MALFORMED, environ, start_response)
        request = environ.get(REQUEST)
        owner = secrets.token_hex(16)
        if request is not None:
            owner = _owners.setdefault(request, owner)
        claim = Claim(self._store, self._id(key, environ), owner)
        fingerprint = self._fingerprint(environ)
        try:
            found = self._store.claim(claim.id, fingerprint, claim.owner)
        except Unreachable:
            # A claim whose INSERT was not answered may be there, but nothing was done with it.
            return self._answer(answers.UNAVAILABLE, environ, start_response)
        if found is not None:
            return self._tell(found, environ, start_response)
        environ[CLAIM] = claim
        attempt = Attempt(self._store, claim, start_response, self._limit)
        result = attempt.run(self.app, environ)
        if isinstance(result, Problem | Stored):
            return self._tell(result, environ, start_response)
        if attempt.lost:
            try:
                found = self._store.claim(claim.id, fingerprint, claim.owner)
            except Unreachable:
                found = UNSETTLED
        return result

    def _tell(self, what: Problem | Stored, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if isinstance(what, Problem):
            return self._answer(what, environ, start)
        self._drain(environ)
        return replay(what, start)

    def _answer(self, problem: Problem, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        self._drain(environ)
        return answers.answer(problem, environ, start, self._retry_after)

    def _drain(self, environ: WSGIEnvironment) -> None:
        answers.drain(self._input(environ), environ)
