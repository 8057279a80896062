"""What this process did that belongs to no pool, counted; and who wants to know at once when any count has changed.

``leaks`` by kind (``session``, ``connection``), ``replays`` by outcome (``succeeded``, ``failed``), ``severed``:
connections of the parent that were cut off here. The counts of pools are in `PoolGuard.stats`.

Who reads counts when somebody asks for them needs nothing else. `observers` is for metrics that have to be written down
before they are asked for, since the asking process is another one; without those it is empty.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable

__all__ = ["changed", "count", "counts", "observers", "reset"]

logger = logging.getLogger(__name__)

counts: Counter[tuple[str, str]] = Counter()
observers: list[Callable[[object], object]] = []
# Reentrant: the garbage collector may close a connection, and come here, in the middle of a locked section.
_lock = threading.RLock()


def count(what: str, kind: str = "", number: int = 1) -> None:
    """So many more of `what`, of this `kind`. Never raises."""
    if number:
        with _lock:
            counts[what, kind] += number
        changed()


def changed(source: object = None) -> None:
    """A count has changed: of this pool's `PoolGuard` or `Breaker`; None: here, or of any pool. Never raises."""
    for observer in observers:
        try:
            observer(source)
        except Exception:
            logger.exception("%r failed", observer)


def reset() -> None:
    """As in a process that has done nothing yet, such as after a fork."""
    global _lock
    _lock = threading.RLock()
    counts.clear()
