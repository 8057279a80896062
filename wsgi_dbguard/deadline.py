"""The longest that a request may spend in the database: a query that is still running then is cancelled on the server.

A server's own timeouts do not see this: gunicorn's threads and greenlets may wait for ever, since the worker as a whole
is alive. Counted is the time of the request's statements, of all its connections together, in all attempts; not the
time for which it waits for a connection, and not what it does itself. When it is up:

* The query is cancelled on the server (see `cancel`), the application gets the error that SQLAlchemy makes of that.
* When it has not ended after another ``ping_timeout`` seconds, because the server or the network does not answer, its
  socket is cut. So the wait is bounded, though the server may go on.
* The request's next statement is not sent: `DeadlineExceeded`. What its sessions hold is rolled back as ever.
* An unsent 500 becomes a 503; an application that handles the error answers for itself. It does not run again.
* The connection is not handed out again (``replaced: deadline``): a cancel may reach the server late, and must not hit
  another request's query. Its owner does not go on with it either before the cancel is out of the way.

COMMIT and ROLLBACK count as well, but are sent however late it is, and never cancelled. They are cut off when what was
left of the time, and ``ping_timeout`` more, is over; also those by which a connection goes back to the pool, and a
Session is rolled back at the request's end. Then a COMMIT is in doubt. A ROLLBACK is not: without its client the server
rolls back by itself, so nobody is told of an error. What is prepared, in two phases, outlives its connection: there
both are errors. What SQLAlchemy sends for an isolation level, and at the end of a savepoint, is held to the same: if a
savepoint were not rolled back, a COMMIT after it would make half of a transaction last, or (PostgreSQL) none of it.

Not counted are rows that are fetched from a server-side cursor, and statements past SQLAlchemy's Connection. Costs two
more events and a lock for each statement, and a lock for each COMMIT and ROLLBACK, where a `DBGuard` has a deadline;
nothing elsewhere.
"""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from . import canceller, events, registry
from .errors import DeadlineExceeded
from .link import KEY, SUSPECT, Link
from .request import Request, current
from .watchdog import Deadline

__all__ = ["Ending", "Running", "watch"]

logger = logging.getLogger(__name__)
current_request = current.get
monotonic = time.monotonic

_watched: weakref.WeakSet[Engine] = weakref.WeakSet()
_bounded: weakref.WeakSet[Dialect] = weakref.WeakSet()  # of an engine and its execution_options() copies
_INFINITE = float("inf")
_PATIENCE = 2.0  # seconds between cancelling and cutting, where no guard says it
# What a dialect sends beside statements, and what it is called here.
_ENDINGS = {
    "do_commit": "COMMIT",
    "do_rollback": "ROLLBACK",
    "do_prepare_twophase": "PREPARE TRANSACTION",
    "do_commit_twophase": "COMMIT PREPARED",
    "do_rollback_twophase": "ROLLBACK PREPARED",
    "do_rollback_to_savepoint": "ROLLBACK TO SAVEPOINT",
    "do_release_savepoint": "RELEASE SAVEPOINT",
    "set_isolation_level": "SET",
    "set_readonly": "SET",
    "set_deferrable": "SET",
}
_HARMLESS = frozenset({"ROLLBACK", "SET"})


def watch(engine: Engine) -> None:
    """Hold the requests that use `engine` to their limits. At the second call, nothing."""
    if engine in _watched or engine.dialect.name == "sqlite" or engine.dialect.is_async:
        return
    _watched.add(engine)
    event.listen(engine, "before_cursor_execute", _on_statement)
    event.listen(engine, "after_cursor_execute", _on_result)
    event.listen(engine, "handle_error", _on_error)
    event.listen(engine, "checkin", _on_checkin)
    if engine.dialect not in _bounded:
        _bounded.add(engine.dialect)
        for name, what in _ENDINGS.items():
            if hasattr(engine.dialect, name):
                setattr(engine.dialect, name, _within_bounds(getattr(engine.dialect, name), what))


class Running(Deadline):
    """One statement on its way, and what becomes of it when the time is up."""

    __slots__ = ("began", "cut", "job", "link", "request", "statement", "what")

    def __init__(
        self, seconds: float, request: Request, link: Link, statement: str | None = None, what: str = "query"
    ) -> None:
        super().__init__(seconds, _nothing)
        self.request = request
        self.link = link
        self.statement = statement
        self.what = what
        self.job: canceller.Job | None = None
        self.cut = False
        self.began = monotonic()

    def begin(self) -> None:
        if self.link.running is not None:  # a listener of the user's raised, so that its end was not seen
            self.link.running.__exit__()
        self.link.running = self
        self.__enter__()

    def expire(self) -> float | None:
        if self.expired:  # for the second time: cancelling has not helped
            self.cut = True
            self.link.cut()
            return None
        self.expired = True
        self._spend()
        try:
            self.job = canceller.start(self.link, self.statement, self.began)
        except Exception:
            logger.exception("could not begin to cancel a query")
        return _patience(self.link)

    def _spend(self) -> None:
        """The time is up, for each request that has no more of it."""
        for each in _limited(self.request):
            if each.limit - each.in_database <= self.seconds:  # type: ignore[operator]
                each.expire()
        self._doom()

    def _doom(self) -> None:
        if self.link.doomed in (None, SUSPECT):
            self.link.doomed = "deadline"

    def end(self) -> None:
        """It has ended, one way or the other. Returns when nothing can hit this connection any more."""
        self.__exit__()
        self.link.running = None
        seconds = monotonic() - self.began
        for each in self.request.chain():
            each.in_database += seconds
        if self.expired:
            try:
                settled = self.job is None or self.job.wait(self.due)  # when it would be cut
            except BaseException:
                self.link.cut()
                raise
            if not settled:
                self.cut = True
                self.link.cut()
            done = "cut off" if self.cut else "cancelled"
            why = ": the server did not answer" if self.cut else ""
            logger.warning("%r: a %s was %s after %.3f s%s", self.request, self.what, done, seconds, why)
            events.note(f"a {self.what} ran past its deadline and was {done}", bad=True)


class Ending(Running):
    """A COMMIT, ROLLBACK or the like on its way: there is no cancelling it."""

    __slots__ = ()

    def expire(self) -> float | None:
        self.expired = self.cut = True
        if self.harmless:  # if the request fails it is not because of this
            self._doom()
        else:
            self._spend()
        self.link.cut()
        return None

    @property
    def harmless(self) -> bool:
        """Whether it has what it wanted when the connection is gone."""
        return self.what in _HARMLESS


def _nothing() -> None:
    return None


def _patience(link: Link) -> float:
    return _PATIENCE if link.guard is None else link.guard.config.ping_timeout


def _limited(request: Request | None) -> Iterator[Request]:
    """Of `request` and those around it, the ones that have a limit."""
    while request is not None:
        if request.limit is not None:
            yield request
        request = request.outer


def _expire(request: Request) -> None:
    """Tell it, and those around it, which of them have spent their time."""
    for each in _limited(request):
        if each.limit <= each.in_database:  # type: ignore[operator]
            each.expire()


def _left(request: Request) -> float:
    """Seconds that it may still spend in the database, less than none where it was one statement too many."""
    if request.outer is None:
        return _INFINITE if request.limit is None else request.limit - request.in_database
    return min([each.limit - each.in_database for each in _limited(request)], default=_INFINITE)  # type: ignore[operator]


# Statements


def _on_statement(connection: Connection, cursor: Any, statement: str, *ignored: Any) -> None:
    request = current_request()
    if request is None:
        return
    left = _left(request)
    if left == _INFINITE:
        return
    link = _link(connection.connection)
    if link is not None and isinstance(link.running, Ending):  # savepoints, and XA in MySQL, end by statements
        return
    if left <= 0:
        _expire(request)
        raise _exceeded(statement)
    if link is not None:
        Running(left, request, link, statement).begin()


def _on_result(connection: Connection, cursor: Any, statement: str, *ignored: Any) -> None:
    running = _statement_on(connection)
    if running is not None:
        running.end()
        # A cancelled SLEEP or GET_LOCK is no error in MySQL, only a wrong result.
        if running.expired and connection.dialect.name != "postgresql":
            raise _exceeded(statement)


def _on_error(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is not None and not connection.closed and not connection.invalidated:
        link = _link(connection.connection)
        running = _statement_on(connection)
        if running is not None:
            running.end()
        elif link is not None and link.severed and (request := current_request()) is not None:
            _expire(request)  # its ROLLBACK was cut off, and it goes on


def _on_checkin(dbapi_connection: Any, entry: ConnectionPoolEntry) -> None:
    link: Link | None = entry.info.get(KEY)
    if link is not None and link.running is not None:
        link.running.__exit__()
        link.running = None


def _statement_on(connection: Connection) -> Running | None:
    link = _link(connection.connection)
    running = None if link is None else link.running
    return None if isinstance(running, Ending) else running


def _link(proxied: PoolProxiedConnection) -> Link | None:
    try:
        return proxied.info.get(KEY)
    except NotImplementedError:  # the dialect's questions on the very first connection have no pool entry
        return None


def _exceeded(statement: str) -> DeadlineExceeded:
    return DeadlineExceeded(statement, None, TimeoutError("the request has spent its time in the database"))


# COMMIT, ROLLBACK and the like


def _within_bounds(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    """`method` of a dialect, cut off where a request has waited for it too long."""

    @functools.wraps(method)
    def bounded(connection: Any, *args: Any, **keywords: Any) -> Any:
        request = current_request()
        left = _INFINITE if request is None else _left(request)
        link = None if left == _INFINITE else _link_of(connection)
        # One method may call another; and what opens a connection has a limit of its own.
        if request is None or link is None or link.opening is not None or isinstance(link.running, Ending):
            return method(connection, *args, **keywords)
        ending = Ending(max(left, 0.0) + _patience(link), request, link, what=what)
        if link.severed and ending.harmless:
            return None
        ending.begin()
        try:
            return method(connection, *args, **keywords)
        except Exception:
            if ending.cut and ending.harmless:
                return None
            raise
        finally:
            ending.end()

    return bounded


def _link_of(connection: Any) -> Link | None:
    """Some methods take a Connection, some the pool's connection, some the driver's."""
    if isinstance(connection, Connection):
        return _link(connection.connection)
    if isinstance(connection, PoolProxiedConnection):
        return _link(connection)
    return next((link for link in list(registry.links) if link.connection() is connection), None)
