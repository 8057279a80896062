"""Deadlines for calls that cannot be given one: a query inside a C driver, a ping on a dead link.

One thread in each process, there only while a deadline runs, calls what it was given when the time is up. It is a real
thread even under gevent, where a greenlet would never get its turn while a C driver blocks the whole hub. So an action
must be short, must not take locks of Python code that may be patched, and must not touch the driver; cutting the socket
(`sockets.cut`) is the model. Not for work that may wait for the event loop: that is what `threading.Timer` is for.

Example::

    with Deadline(2.0, lambda: sockets.cut(fd)) as deadline:
        dialect.do_ping(connection)         # fails when the socket is cut
    if deadline.expired: ...
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable

from .unpatched import original

__all__ = ["Deadline", "reset_after_fork"]

logger = logging.getLogger(__name__)


class _Watchdog:
    """The thread and the deadlines that it waits for. Made anew in a forked child, where the thread does not exist."""

    def __init__(self) -> None:
        self.mutex = original("_thread", "allocate_lock")()
        self.wake = original("_thread", "allocate_lock")()
        self.wake.acquire()
        self.pending: dict[int, Deadline] = {}
        self.next_due: float | None = None  # what the thread sleeps for; None: there is no thread

    def add(self, deadline: Deadline) -> None:
        # Out of threads, or the interpreter ends: a call without a limit is worth more than none.
        try:
            self._add(deadline)
        except RuntimeError as error:
            logger.warning("no limit for a call to the database: %s", error)

    def _add(self, deadline: Deadline) -> None:
        # Critical section: no I/O, and the thread that may have to be started takes the mutex first of all.
        with self.mutex:
            if self.next_due is None:
                original("_thread", "start_new_thread")(self.run, ())
                self.next_due = deadline.due
            elif deadline.due < self.next_due and self.wake.locked():
                self.next_due = deadline.due
                self.wake.release()
            self.pending[deadline.key] = deadline

    def run(self) -> None:
        while True:
            with self.mutex:
                now = time.monotonic()
                for deadline in [each for each in self.pending.values() if each.due <= now]:
                    # Under the mutex, so that it happens either before or after the owner takes the deadline back, and
                    # never to a descriptor that got another meaning since.
                    del self.pending[deadline.key]
                    again = deadline.expire()
                    if again is not None:
                        deadline.due = now + again
                        self.pending[deadline.key] = deadline
                if not self.pending:
                    self.next_due = None
                    return
                self.next_due = min(each.due for each in self.pending.values())
                pause = self.next_due - now
            self.wake.acquire(timeout=max(pause, 0.0))


_watchdog = _Watchdog()
_keys = itertools.count()


class Deadline:
    """Calls `action` after `seconds`, unless the ``with`` block has ended by then; `expired` tells afterwards."""

    __slots__ = ("action", "due", "expired", "key", "seconds")

    def __init__(self, seconds: float, action: Callable[[], object]) -> None:
        self.seconds = seconds
        self.action = action
        self.key = next(_keys)
        self.due = 0.0
        self.expired = False

    def __enter__(self) -> Deadline:
        self.due = time.monotonic() + self.seconds
        _watchdog.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        with _watchdog.mutex:
            _watchdog.pending.pop(self.key, None)

    def expire(self) -> float | None:
        """Called by the watchdog when the time is up; a subclass returns seconds to be called once more after those."""
        self.expired = True
        try:
            self.action()
        except Exception:  # an action that fails leaves its call unbounded, and must not take the thread along
            logger.exception("the action of a deadline failed")
        return None


def reset_after_fork() -> None:
    """Forget the parent's deadlines: the thread that watched them does not exist in a forked child."""
    global _watchdog
    if _watchdog.next_due is not None or _watchdog.mutex.locked():
        _watchdog = _Watchdog()
