"""Has the server behind a pool become read-only? Asked once for all its connections, after a write was refused.

A failover leaves pools that lead to the old primary: a ping succeeds, and every write fails, for hours. So the first
refused write makes all connections of the pool suspect (`Failover.suspect`), and the next checkout asks the server
(`Failover.look`): in the failed transaction it could not be asked.

Or the application itself made the transaction READ ONLY, or its session. Then a second run of its request would meet
the same, and no 503 is due. So in a request the server is asked as soon as the refused transaction is at its end
(`ask`): on its own connection, as others may lead elsewhere by then.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import PoolProxiedConnection

from . import failures, liveness, state
from .link import KEY, SUSPECT, Link
from .request import Request

if TYPE_CHECKING:
    from .pool import PoolGuard

__all__ = ["Failover", "ask", "is_own", "refused"]

# Also where only the transaction or the session is read-only; the others tell of the server.
_OF_THE_TRANSACTION = frozenset({"25006", 1792})
_PAUSES = (1.0, 300.0)  # first and longest, seconds: a failover is over in seconds, or it is none


class Failover:
    """What is known of it for the pool of one `PoolGuard`, in one process."""

    def __init__(self) -> None:
        self._pause = _PAUSES[0]  # for how long after one was seen none is looked for
        self._again = float("-inf")

    def suspect(self, guard: PoolGuard) -> None:
        """A write was refused as read-only: the server was demoted, or the application asked for it."""
        with guard.lock:
            if monotonic() >= self._again:
                for each in guard.links():
                    each.doomed = each.doomed or SUSPECT

    def look(self, guard: PoolGuard, connection: Any, link: Link) -> None:
        """One answer for the whole pool: is the server itself read-only? Returns if `link` may be used.

        If it is, new connections may lead to the new primary. They may lead to the same server as well, one that is
        read-only for good: then looking again is worth less and less.

        Raises:
            sqlalchemy.exc.DisconnectionError: if `link` may not be used.
        """
        if liveness.read_only(guard.dialect, connection, link, guard.config.ping_timeout):
            with guard.lock:
                if link.doomed == SUSPECT:  # nobody else was faster
                    self._again = monotonic() + self._pause
                    self._pause = min(2 * self._pause, _PAUSES[1])
            guard.condemn(link, "leads to a server that has become read-only")
            raise guard.replace("read_only", link)
        # Only now: whoever checks out while the question is on its way has to ask as well, not to write in vain.
        self.clear(guard)
        if link.doomed is not None:
            raise guard.replace(link.doomed, link)

    def clear(self, guard: PoolGuard) -> None:
        """The server takes writes."""
        with guard.lock:
            self._pause = _PAUSES[0]
            for each in guard.links():
                if each.doomed == SUSPECT:
                    each.doomed = None


def refused(request: Request, link: Link, error: BaseException) -> None:
    """A write of `request` was refused as read-only, by the driver's `error` on a connection of a primary's."""
    request.refused = link if failures.code_of(error) in _OF_THE_TRANSACTION else None
    request.asked_for_it = False


def ask(request: Request, proxied: PoolProxiedConnection) -> None:
    """The transaction of `proxied` is at its end: if a write was refused in it, find out whose doing that was."""
    link = request.refused
    guard = None if link is None else link.guard
    if link is None or guard is None or not proxied.is_valid or proxied.info.get(KEY) != link:
        return
    request.refused = None
    # One that has failed takes nothing but a rollback. Any other goes on, as far as this is concerned.
    within = not state.has_failed(proxied)
    answer = liveness.read_only(guard.dialect, proxied.dbapi_connection, link, guard.config.ping_timeout, within=within)
    if not within and (writer := request.writer(proxied)) is not None:
        request.written(writer)  # the question has rolled it back
    if answer is False:
        request.asked_for_it = True
        guard.failover.clear(guard)


def is_own(request: Request) -> bool:
    """Whether it was `request` itself that wanted no writes, when one was refused. When in doubt, no."""
    link = request.refused
    if link is not None and link.owner is request.owner and not link.lent:
        proxied = link.taken()  # a session of its own still has it
        if proxied is not None:
            ask(request, proxied)
    return request.asked_for_it
