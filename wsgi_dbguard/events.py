"""What has happened in this process lately, in words: for the status page, and kept only where somebody has one.

Noted beside the log's lines, and not read from them: a log has SQL, paths and drivers' messages, which are nothing for
a page; and its level decides what comes there at all. Events that repeat are one, with a count, so that a restart that
costs twenty connections does not push out what came before it.

Example::

    keep()
    note("the database is away", pool.name, bad=True)
    [(each.pool, each.what, each.count) for each in recent()]
"""

from __future__ import annotations

from collections import deque
from time import time

__all__ = ["Event", "keep", "note", "recent", "reset"]

_KEPT = 50
_SAME = 60.0  # seconds for which an event that repeats is the same one
_ring: deque[Event] | None = None  # None: nobody wants to know


class Event:
    """One thing that happened, `count` times between `first` and `last` (`time.time()`, for people)."""

    __slots__ = ("bad", "count", "first", "last", "pool", "what")

    def __init__(self, now: float, pool: str, what: str, bad: bool) -> None:
        self.first = self.last = now
        self.pool = pool  # name of the `PoolGuard`; empty: of none
        self.what = what
        self.bad = bad  # an operator should see it; what the guard put right by itself is not
        self.count = 1


def keep() -> None:
    """From now on."""
    global _ring
    if _ring is None:
        _ring = deque(maxlen=_KEPT)


def note(what: str, pool: str = "", *, bad: bool = False) -> None:
    """It has happened. Takes no lock: the garbage collector may come here in the middle of this. Never raises."""
    ring = _ring
    if ring is None:
        return
    now = time()
    for each in list(ring)[-4:]:  # the causes of one outage take turns
        if each.what == what and each.pool == pool and now - each.first < _SAME:
            each.count += 1
            each.last = now
            return
    ring.append(Event(now, pool, what, bad))


def recent() -> list[Event]:
    """The last ones, oldest first."""
    return list(_ring or ())


def reset() -> None:
    """As in a process in which nothing has happened yet, such as after a fork."""
    if _ring is not None:
        _ring.clear()
