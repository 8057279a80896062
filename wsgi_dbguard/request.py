"""What one request did with the database: plain counts, filled in by listeners while the request runs.

`current` tells which request the running code belongs to: a context variable, so it is right in threads, in greenlets
and in a response body that is produced after the application returned (the middleware sets it around each chunk).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Set
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from .failures import Failure

if TYPE_CHECKING:
    from typing import Protocol

    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import PoolProxiedConnection

    from .link import Link
    from .stacks import Trace

    class Extra(Protocol):
        """What an optional module keeps with one attempt of a request."""

        def depart(
            self, request: Request, headers: list[tuple[str, str]], *, failed: bool = False
        ) -> list[tuple[str, str]]:
            """The response's headers, just before they leave; or others in their place.

            `failed`: it is not the application's response, but the guard's in its place: the database failed it.
            """


__all__ = ["NOTHING", "SAFE_METHODS", "Owner", "Request", "arrivals", "current", "tokens", "unseen"]

NOTHING: Set[Any] = frozenset()  # most requests never write, and a WeakSet takes a while to make
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110, 9.2.1; TRACE is no application's

Owner = list[str]
"""Whose a connection is, in words: the little that the pool may keep of a request, for longer than there is one."""


class _Attempt:
    """What one attempt of a request does, filled in while it runs by `pool`, `transactions` and `sessions`."""

    # Optimization: what most requests never change stays in the class, here and in Request.
    checkouts: int = 0  # connections taken from guarded pools
    replaced: int = 0  # of these, how many were found dead or too old, and replaced
    unseen: int = 0  # connections taken past SQLAlchemy's Connection, of any pool: statements not to be seen
    statements: int = 0
    commits: int = 0  # of transactions that may have written: finished, or in doubt
    unfinished: Set[Connection] = NOTHING  # with writes that are not committed
    committing: ref[PoolProxiedConnection] | None = None  # the last one that was told to commit
    lent: Collection[Session] = ()  # sessions that other threads used
    keeps: bool = False  # a session that could not be rolled back has changes of it that are not written yet
    in_doubt: bool = False  # a connection was lost during its commit
    database_failure: Failure | None = None  # the last one
    refused: Link | None = None  # on which a write was, as read-only; until it is known why, see `failover`
    asked_for_it: bool = False  # then: because the application wanted no writes there
    told: bool = False  # the framework told of an exception that it makes a response of, see `frameworks`
    blamed: Failure | None = None  # then: what the database did to cause that
    failure: type[BaseException] | None = None  # what the application raised first through the middleware
    extras: tuple[Extra, ...] = ()  # by `arrivals`
    streams: bool = False  # not safe, and its body may go on after its headers have left
    stand_in: bool = False  # it used a replica
    moves: bool = False  # of `database_failure`: it was the replica's, so a second attempt has the primary


class Request(_Attempt):
    """One request, from the middleware's call to the close of the response. In environ as ``wsgi_dbguard.request``."""

    # It keeps neither environ nor an exception: both lead back here, and such a circle would keep alive what the
    # application's frames hold, a connection for one, until the garbage collector comes. And it keeps no Connection and
    # no Session: one that the application lets go without closing it has to go home, at once.

    heals = True  # what it leaves on a pooled connection is to be gone for the next one, see `state`
    changes = False  # it has changed such a thing in a transaction
    trace: Callable[[], Trace] | None = None  # how to tell where it takes its connections, see `leaks`
    ended: float | None = None  # `time.monotonic()` seconds, as `started`
    held = 0.0  # seconds that it has waited for a database that was away, in all attempts
    limit: float | None = None  # seconds that it may spend in the database, in all attempts; see `deadline`
    in_database = 0.0  # seconds that its statements and COMMITs took; counted where a limit is set
    expired = False  # it spent all that it may
    replayable = False  # the application says that it may run twice, see `replay.replayable`
    attempt = 1  # 2 when it runs again
    outer: Request | None = None  # whose application made this one, in the same process and with the same context

    def __init__(self, environ: dict[str, Any], outer: Request | None = None) -> None:
        self.method: str = environ.get("REQUEST_METHOD", "?")
        self.safe = self.method in SAFE_METHODS
        self.path: str = environ.get("PATH_INFO", "")
        self.owner: Owner = [self.method, self.path]
        self.links: list[Link] = []  # the pooled connections that it took, each one once or more
        self.sessions: list[ref[Session]] = []  # ORM sessions that the present attempt used
        self.begun: list[ref[Connection]] = []  # with which they began a transaction
        self.started = monotonic()
        self.thread = threading.get_ident()  # in which the application runs; of the present step
        if outer is not None and outer.ended is None:
            self.outer = outer

    @property
    def seconds(self) -> float:
        """How long the request took, or has taken so far."""
        return (monotonic() if self.ended is None else self.ended) - self.started

    def fail(self, error: BaseException) -> None:
        """The application raised `error`. Only the first one counts."""
        if self.failure is None:
            self.failure = type(error)

    def swallowed(self, blamed: Failure | None) -> None:
        """The framework makes a response of an exception, the database's if `blamed`. The last one is what it sends."""
        self.told, self.blamed = True, blamed

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
        self,
        failure: Failure,
        connection: Connection | None = None,
        *,
        committing: bool,
        refused: bool = False,
        replica: bool = False,
    ) -> bool:
        """An operation failed, on `connection` or in getting one. Whether a commit is in doubt because of it.

        `committing`: it was no statement, so perhaps the COMMIT; `refused`: the server itself said that it failed;
        `replica`: that server is a replica.
        """
        in_doubt = failure is Failure.IN_DOUBT
        told = None if self.committing is None else self.committing()
        if committing and told is not None and connection is not None and connection.connection is told:
            self.committing = None
            if refused:
                self.note(commits=-1)
            else:
                in_doubt = True
        self.in_doubt |= in_doubt
        if failure is not Failure.OTHER and not self.expired:
            self.database_failure = failure
            self.moves = replica and self.stand_in
        return in_doubt

    def expire(self) -> None:
        """Its time in the database is up: whatever else fails from here on, this is why."""
        self.expired = True
        self.database_failure = Failure.DEADLINE

    def chain(self) -> Iterator[Request]:
        """This request and those around it, the innermost one first."""
        request: Request | None = self
        while request is not None:
            yield request
            request = request.outer

    def write(self, connection: Connection) -> None:
        """It writes on `connection`, in a transaction; and so do the requests around this one."""
        for each in self.chain():
            if not isinstance(each.unfinished, WeakSet):
                each.unfinished = WeakSet()
            each.unfinished.add(connection)

    def written(self, connection: Connection) -> None:
        """Its transaction has ended."""
        for each in self.chain():
            if isinstance(each.unfinished, WeakSet):
                each.unfinished.discard(connection)

    def writer(self, proxied: PoolProxiedConnection) -> Connection | None:
        """The Connection by which it, or one around it, has written on `proxied`, and has not committed that."""
        for each in self.chain() if self.outer is not None else (self,):
            for connection in each.unfinished or ():  # an empty WeakSet is dear to walk
                if not connection.closed and not connection.invalidated and connection.connection is proxied:
                    return connection
        return None

    def lend(self, session: Session) -> None:
        """A thread of the application's own uses `session`."""
        if not isinstance(self.lent, WeakSet):
            self.lent = WeakSet()
        self.lent.add(session)

    def again(self) -> None:
        """A second attempt begins."""
        self.attempt += 1
        self.sessions, self.begun = [], []
        for name in _Attempt.__annotations__:
            vars(self).pop(name, None)

    def end(self) -> None:
        """The response was closed, or will never be. Only the first end counts."""
        if self.ended is None:
            self.ended = monotonic()
            self.owner.append("(ended)")
            self.committing = None
            self.unfinished = NOTHING

    def __repr__(self) -> str:
        state = "running" if self.ended is None else "ended"
        counts = f"checkouts={self.checkouts} replaced={self.replaced}"
        return f"<Request {self.method} {self.path} {state} {self.seconds:.3f}s {counts}>"


current: ContextVar[Request | None] = ContextVar("wsgi_dbguard.request", default=None)
arrivals: list[Callable[[Request, dict[str, Any]], object]] = []
"""Optional modules, called with each attempt and its environ before the application is: they leave their `extras`."""
unseen: list[Callable[[Request, Dialect], object]] = []
"""Optional modules, called where a request may write what is not to be seen: it takes a connection past SQLAlchemy's
Connection, or any, if its method is not safe; or it commits what counts, see `transactions`."""
tokens: set[str] = set()
"""Optional modules' headers of a response, in small letters, that are for this one client: not to be sent again."""
