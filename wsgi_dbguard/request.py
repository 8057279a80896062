"""What one request did with the database: plain counts, filled in by listeners while the request runs.

`current` tells which request the running code belongs to: a context variable, so it is right in threads, in greenlets
and in a response body that is produced after the application returned (the middleware sets it around each chunk).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Container
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from .failures import Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

__all__ = ["SAFE_METHODS", "Request", "current"]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110, 9.2.1; TRACE is no application's


class Request:
    """One request, from the middleware's call to the close of the response. In environ as ``wsgi_dbguard.request``."""

    __slots__ = (
        "__weakref__",
        "attempt",
        "checkouts",
        "commits",
        "committing",
        "database_failure",
        "ended",
        "failure",
        "held",
        "in_doubt",
        "lent",
        "method",
        "outer",
        "path",
        "replaced",
        "replayable",
        "safe",
        "sessions",
        "started",
        "statements",
        "thread",
        "unfinished",
        "unseen",
    )

    # It keeps neither environ nor an exception: both lead back here, and such a circle would keep alive what the
    # application's frames hold, a connection for one, until the garbage collector comes. And it keeps no Connection and
    # no Session: one that the application lets go without closing it has to go home, at once.
    def __init__(self, environ: dict[str, Any], outer: Request | None = None) -> None:
        self.method: str = environ.get("REQUEST_METHOD", "?")
        self.safe = self.method in SAFE_METHODS
        self.path: str = environ.get("PATH_INFO", "")
        self.started = time.monotonic()
        self.ended: float | None = None  # `time.monotonic()` seconds, as `started`
        self.thread = threading.get_ident()  # in which the application runs; of the present step
        self.held = 0.0  # seconds that it has waited for a database that was away, in all attempts
        self.replayable = False  # the application says that it may run twice, see `replay.replayable`
        self.attempt = 1  # 2 when it runs again
        # The request whose application made this one, in the same process and with the same context.
        self.outer = outer if outer is not None and outer.ended is None else None
        self._begin()

    def _begin(self) -> None:
        """What one attempt does, filled in while it runs by `pool`, `transactions` and `sessions`."""
        self.checkouts = 0  # connections taken from guarded pools
        self.replaced = 0  # of these, how many were found dead or too old, and replaced
        self.unseen = 0  # connections taken past SQLAlchemy's Connection, of any pool: statements not to be seen
        self.statements = 0
        self.commits = 0  # of transactions that may have written: finished, or in doubt
        self.unfinished: WeakSet[Connection] = WeakSet()  # with writes that are not committed
        self.committing: ref[Connection] | None = None  # the last one that was told to commit
        self.lent: Container[Session] = ()  # sessions that other threads used
        self.in_doubt = False  # a connection was lost during its commit
        self.sessions: WeakSet[Session] = WeakSet()  # ORM sessions that were used
        self.database_failure: Failure | None = None  # the last one
        self.failure: type[BaseException] | None = None  # what the application raised first through the middleware

    @property
    def seconds(self) -> float:
        """How long the request took, or has taken so far."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    def fail(self, error: BaseException) -> None:
        """The application raised `error`. Only the first one counts."""
        if self.failure is None:
            self.failure = type(error)

    def note(self, *, commits: int = 0, unseen: int = 0) -> None:
        """Add to the counts that forbid a second run; those of the requests around this one as well."""
        request: Request | None = self
        while request is not None:
            request.commits += commits
            request.unseen += unseen
            request = request.outer

    def is_within(self, other: Request) -> bool:
        """Whether this request is `other`, or was made by its application."""
        request: Request | None = self
        while request is not None and request is not other:
            request = request.outer
        return request is other

    def database_failed(
        self, failure: Failure, connection: Connection | None = None, *, committing: bool, refused: bool = False
    ) -> None:
        """An operation failed, on `connection` or in getting one.

        `committing`: it was no statement, so perhaps the COMMIT; `refused`: the server itself said that it failed.
        """
        if committing and connection is not None and self.committing is not None and connection is self.committing():
            self.committing = None
            if refused:
                self.note(commits=-1)
            else:
                self.in_doubt = True
        if failure is Failure.IN_DOUBT:
            self.in_doubt = True
        if failure is not Failure.OTHER:
            self.database_failure = failure

    def lend(self, session: Session) -> None:
        """A thread of the application's own uses `session`."""
        if not isinstance(self.lent, WeakSet):
            self.lent = WeakSet()
        self.lent.add(session)

    def again(self) -> None:
        """A second attempt begins."""
        self.attempt += 1
        self._begin()

    def end(self) -> None:
        """The response was closed, or will never be. Only the first end counts."""
        if self.ended is None:
            self.ended = time.monotonic()
            self.committing = None
            self.unfinished.clear()

    def __repr__(self) -> str:
        state = "running" if self.ended is None else "ended"
        counts = f"checkouts={self.checkouts} replaced={self.replaced}"
        return f"<Request {self.method} {self.path} {state} {self.seconds:.3f}s {counts}>"


current: ContextVar[Request | None] = ContextVar("wsgi_dbguard.request", default=None)
