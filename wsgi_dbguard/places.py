"""A pool has so many places. While the database is away they may all be taken by callers that wait for it (`hold`).

Whoever comes then would wait for a place, by SQLAlchemy's rules: for `pool_timeout`, 30 seconds by default, and even
when those who had the places have given up, since it wakes nobody for that. With more threads or greenlets than places
that is most of them. So while the database is away these callers wait for what `hold` allows and no longer; when it
is back they wait for a place as always.

For that the pool's `_do_get` is replaced, from the beginning of an outage to its end only: it costs nothing else.
"""

from __future__ import annotations

import weakref
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.util import queue

from . import tally
from .request import current

if TYPE_CHECKING:
    from .breaker import Breaker

__all__ = ["Places"]

_LOOK = 0.1  # seconds after which to look whether a place is free, where no connection came back that would tell


class Places:
    """Those of one engine's pool, for its breaker."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._engine: weakref.ref[Engine] | None = None
        self._watched: weakref.ref[QueuePool] | None = None
        self.waiting = 0  # callers without a place; under the breaker's lock, as its other counts

    def of(self, engine: Engine) -> None:
        """It is this engine's pool, and what `Engine.dispose` makes of it."""
        self._engine = weakref.ref(engine)

    def reset(self) -> None:
        """As in a process that has not tried yet."""
        self.waiting = 0
        self.free()

    def watch(self) -> None:
        """The database is away."""
        engine = None if self._engine is None else self._engine()
        if engine is not None and isinstance(engine.pool, QueuePool) and self._breaker.config.hold > 0:
            pool = engine.pool
            self._watched = weakref.ref(pool)
            pool._do_get = lambda: self._take(pool)  # type: ignore[method-assign]

    def free(self) -> None:
        """It is back."""
        watched, self._watched = self._watched, None
        pool = None if watched is None else watched()
        if pool is not None:
            vars(pool).pop("_do_get", None)

    def _take(self, pool: QueuePool) -> ConnectionPoolEntry:
        if self._breaker.away and _is_full(pool):
            entry = self._wait(pool)
            if entry is not None:
                return entry
        return type(pool)._do_get(pool)

    def _wait(self, pool: QueuePool) -> ConnectionPoolEntry | None:
        """The connection that came back meanwhile; None: there is a place, or the database is back.

        Raises:
            DatabaseUnavailable: if neither came to pass in time.
        """
        began = monotonic()
        until = began + min(self._breaker.patience(), pool.timeout())
        self._count(1)
        tally.changed()  # now: it may be long
        try:
            while self._breaker.away and _is_full(pool):
                left = until - monotonic()
                if left <= 0:
                    raise self._breaker.refuse()
                try:
                    return pool._pool.get(True, min(left, _LOOK))
                except queue.Empty:
                    continue
            return None
        finally:
            self._count(-1)
            request = current.get()
            if request is not None:
                request.held += monotonic() - began

    def _count(self, step: int) -> None:
        with self._breaker.lock:
            self.waiting += step
            self._breaker.held += step > 0


def _is_full(pool: QueuePool) -> bool:
    return -1 < pool._max_overflow <= pool._overflow
