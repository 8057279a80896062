"""Has the server behind a pool become read-only? Asked once for all its connections, after a write was refused.

A failover leaves pools that lead to the old primary: a ping succeeds, and every write fails, for hours. So the first
refused write makes all connections of the pool suspect (`Failover.suspect`), and the next checkout asks the server
(`Failover.look`): in the failed transaction it could not be asked. Whether the application itself asked for READ ONLY
is known then too.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from . import liveness
from .link import SUSPECT, Link

if TYPE_CHECKING:
    from .pool import PoolGuard

__all__ = ["Failover"]

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
        with guard.lock:
            self._pause = _PAUSES[0]
            for each in guard.links():
                if each.doomed == SUSPECT:
                    each.doomed = None
        if link.doomed is not None:
            raise guard.replace(link.doomed, link)
