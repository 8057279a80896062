"""`Idempotent`: the WSGI middleware. See the package for what it does."""

from __future__ import annotations

import hashlib
import logging
import secrets
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from wsgi_dbguard import answers
from wsgi_dbguard.answers import Problem
from wsgi_dbguard.exchange import REQUEST
from wsgi_dbguard.request import Request, unseen

from .attempt import Attempt
from .body import ReadBody
from .claims import Claim, active
from .header import parse_key
from .problems import APPLIED, CARRIED_OUT, INCOMPLETE, MALFORMED, MISSING
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

# Of each request in a guard: for each key the last owner, and in which attempt. One that the guard runs again may take
# what its first run had: that may have been unable to give its claim back.
_owners: weakref.WeakKeyDictionary[Request, dict[str, tuple[int, str | None]]] = weakref.WeakKeyDictionary()


class Idempotent:
    """WSGI middleware that has a request with an Idempotency-Key done once, however often it is sent.

    Args:
        app: the WSGI application.
        engine: of the database in which the application writes, and the table of the keys is.
        principal: whose key it is, from environ, such as a user's id that the server or a middleware around this one
            has checked. Keys of different principals have nothing to do with each other. None for an application
            without users: then whoever knows a key gets its answer.
        methods: those that take a key, several names; others pass.
        required: whether a request without a key is refused; or a function of environ that says so.
        lease: seconds after which another request may have the key of one that has not ended. Longer than the longest
            request takes, or that one is refused its COMMIT.
        table: the name of the table, see `create_table`.
        body_limit: how many bytes of a request's body are compared, and of an answer's are kept. Larger answers are
            not: who repeats the request is told that it was applied.
        retry_after: base of the jittered Retry-After, in seconds.

    Raises:
        TypeError: if `app` is not callable, `engine` is not an engine or `methods` are not several names.
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
        names = () if isinstance(methods, str | bytes) else tuple(methods)
        if not names or not all(isinstance(each, str) and each.replace("-", "").isalpha() for each in names):
            raise TypeError(f"methods={methods!r}: must be several names of methods, such as {{'POST', 'PATCH'}}")
        if not 1 <= lease <= 86400:
            raise ValueError(f"lease={lease!r}: must be a number of seconds of at least 1 and at most 86400")
        if body_limit < 0 or not retry_after > 0:
            raise ValueError("body_limit must be 0 bytes or more, retry_after above 0 seconds")
        self.app = app
        self._store = Store(engine, table, lease)
        self._principal = principal
        self._methods = frozenset(each.upper() for each in names)
        self._required = required
        self._limit = body_limit
        self._retry_after = retry_after
        watch(engine)

    def __repr__(self) -> str:
        return f"<Idempotent {self.app!r} on {self._store.engine!r}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # The same environ after its claim has ended is somebody's second try of the same request.
        claimed = CLAIM in environ and environ[CLAIM] is active.get()
        if environ.get("REQUEST_METHOD") not in self._methods or claimed:
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
            if isinstance(result, Stored) or result in (APPLIED, CARRIED_OUT):
                self._tell_of_the_commit(environ)
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
        fingerprint = self._fingerprint(body, environ)
        if body is not None and body.broke_off:
            return INCOMPLETE
        claim = Claim(self._store, self._id(key, environ), secrets.token_hex(16))
        if body is not None and body.rewindable:
            body.rewind()  # `principal` may have read it, to check a signature
        try:
            found = self._store.claim(claim.id, fingerprint, claim.owner, _former(request, claim))
        except Unreachable as error:
            # A claim whose INSERT was not answered may be there, but nothing was done with it.
            logger.warning("an Idempotency-Key could not be looked up: %s", error)
            return answers.UNAVAILABLE
        if found is not None:
            return found
        environ[CLAIM] = claim
        return Attempt(self._store, claim, fingerprint, start_response, request, body, self._limit).run(
            self.app, environ
        )

    def _tell_of_the_commit(self, environ: WSGIEnvironment) -> None:
        """The answer speaks of what an earlier request has committed: with `routing` the client has to see it next."""
        request: Request | None = environ.get(REQUEST)
        if request is None:
            return
        if not request.commits:
            request.note(commits=1)
        for tell in unseen:  # the store's own connections are no deed of the request's: so by hand
            tell(request, self._store.engine.dialect)

    def _id(self, key: str, environ: WSGIEnvironment) -> str:
        principal = None if self._principal is None else self._principal(environ)
        if principal is None:
            return _digest(key.encode())
        if not isinstance(principal, str | bytes):
            raise TypeError(f"principal gives a str, bytes or None, not {type(principal).__name__}: {principal!r}")
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
        content = b"" if body is None else body.beginning()
        # By another version of HTTP the same body may come without its length.
        length = len(content) if body is None or body.length is None else body.length
        names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")
        return _digest(*(environ.get(name, "").encode() for name in names), b"%d" % length, content)


def _former(request: Request | None, claim: Claim) -> str | None:
    """The owner of the same key in the attempt of `request` before this one; and note who has it now."""
    if request is None:
        return None
    owners = _owners.setdefault(request, {})
    attempt, owner = owners.get(claim.id, (0, None))
    if attempt == request.attempt:  # it has sent the same key twice
        return None
    owners[claim.id] = (request.attempt, claim.owner)
    return owner


def _digest(*parts: bytes) -> str:
    """sha256 of `parts`, each with its length before it: no two lists of parts look the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()
