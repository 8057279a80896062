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

Not counted are COMMIT and ROLLBACK (to stop those helps nobody), rows that are fetched from a server-side cursor, and
statements past SQLAlchemy's Connection. Costs two more events and a lock for each statement, where a `DBGuard` has a
deadline; nothing elsewhere.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from . import canceller, events
from .errors import DeadlineExceeded
from .link import KEY, SUSPECT, Link
from .request import Request, current
from .watchdog import Deadline

__all__ = ["Running", "watch"]

logger = logging.getLogger(__name__)
current_request = current.get
monotonic = time.monotonic

_watched: weakref.WeakSet[Engine] = weakref.WeakSet()
_INFINITE = float("inf")
_PATIENCE = 2.0  # seconds between cancelling and cutting, where no guard says it


def watch(engine: Engine) -> None:
    """Hold the requests that use `engine` to their limits. At the second call, nothing."""
    if engine in _watched or engine.dialect.name == "sqlite" or engine.dialect.is_async:
        return
    _watched.add(engine)
    event.listen(engine, "before_cursor_execute", _on_statement)
    event.listen(engine, "after_cursor_execute", _on_result)
    event.listen(engine, "handle_error", _on_error)
    event.listen(engine, "checkin", _on_checkin)


class Running(Deadline):
    """One statement on its way, and what becomes of it when the time is up."""

    __slots__ = ("began", "cut", "job", "link", "request", "statement")

    def __init__(self, seconds: float, request: Request, link: Link, statement: str) -> None:
        super().__init__(seconds, _nothing)
        self.request = request
        self.link = link
        self.statement = statement
        self.job: canceller.Job | None = None
        self.cut = False
        self.began = monotonic()

    def expire(self) -> float | None:
        if self.expired:  # for the second time: cancelling has not helped
            self.cut = True
            self.link.cut()
            return None
        self.expired = True
        for each in _limited(self.request):
            if each.limit - each.in_database <= self.seconds:  # type: ignore[operator]
                each.expire()
        if self.link.doomed in (None, SUSPECT):
            self.link.doomed = "deadline"
        try:
            self.job = canceller.start(self.link, self.statement, self.began)
        except Exception:
            logger.exception("could not begin to cancel a query")
        return _PATIENCE if self.link.guard is None else self.link.guard.config.ping_timeout

    def end(self) -> None:
        """The statement has ended, one way or the other. Returns when nothing can hit this connection any more."""
        self.__exit__()
        self.link.running = None
        seconds = monotonic() - self.began
        request: Request | None = self.request
        while request is not None:
            request.in_database += seconds
            request = request.outer
        if self.expired:
            try:
                settled = self.job is None or self.job.wait(self.due)  # when it would be cut
            except BaseException:
                self.link.cut()
                raise
            if not settled:
                self.cut = True
                self.link.cut()
            logger.warning(
                "%r: a query was %s after %.3f s", self.request,
                "cut off: the server did not answer" if self.cut else "cancelled", seconds,
            )  # fmt: skip
            events.note("a query ran past its deadline and was " + ("cut off" if self.cut else "cancelled"), bad=True)


def _nothing() -> None:
    return None


def _limited(request: Request | None) -> Iterator[Request]:
    """Of `request` and those around it, the ones that have a limit."""
    while request is not None:
        if request.limit is not None:
            yield request
        request = request.outer


def _on_statement(connection: Connection, cursor: Any, statement: str, *ignored: Any) -> None:
    request = current_request()
    if request is None:
        return
    left = _INFINITE if request.limit is None else request.limit - request.in_database
    if request.outer is not None:
        left = min([each.limit - each.in_database for each in _limited(request)], default=_INFINITE)  # type: ignore[operator]
    if left <= 0:
        for each in _limited(request):
            if each.limit <= each.in_database:  # type: ignore[operator]
                each.expire()
        raise _exceeded(statement)
    link = _link(connection) if left < _INFINITE else None
    if link is not None:
        if link.running is not None:  # a listener of the user's raised, so that its end was not seen
            link.running.__exit__()
        running = link.running = Running(left, request, link, statement)
        running.__enter__()


def _on_result(connection: Connection, cursor: Any, statement: str, *ignored: Any) -> None:
    link = _link(connection)
    if link is not None and link.running is not None:
        running = link.running
        running.end()
        # A cancelled SLEEP or GET_LOCK is no error in MySQL, only a wrong result.
        if running.expired and connection.dialect.name != "postgresql":
            raise _exceeded(statement)


def _on_error(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is not None and not connection.closed and not connection.invalidated:
        link = _link(connection)
        if link is not None and link.running is not None:
            link.running.end()


def _on_checkin(dbapi_connection: Any, entry: ConnectionPoolEntry) -> None:
    link: Link | None = entry.info.get(KEY)
    if link is not None and link.running is not None:
        link.running.__exit__()
        link.running = None


def _link(connection: Connection) -> Link | None:
    try:
        return connection.connection.info.get(KEY)
    except NotImplementedError:  # the dialect's questions on the very first connection have no pool entry
        return None


def _exceeded(statement: str) -> DeadlineExceeded:
    return DeadlineExceeded(statement, None, TimeoutError("the request has spent its time in the database"))
