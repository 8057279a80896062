"""A pool has so many places. Who gives one up because no connection could be opened passes it on.

Whoever finds all places taken waits in the pool's queue, for `pool_timeout` (30 seconds by default). SQLAlchemy wakes
one of them when a connection comes back to the pool, but nobody when a place comes free because opening a connection
failed. So while a database is away, with more threads or greenlets than places, most callers would wait for the whole
`pool_timeout`, whatever the others have been told, and also when the database is back by then. Here the place goes to
the queue, as an entry without a connection, just as one that was invalidated: who gets it opens one, or is told.

It costs nothing but when a connection cannot be opened.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

from sqlalchemy.pool import Pool, PoolProxiedConnection, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import queue

from .registry import pool_of

__all__ = ["is_waited_for", "pass_on", "take"]


def pass_on(entry: Any) -> None:
    """A connection is about to be opened for this pool entry: have its pool pass on what is given up from now on."""
    pool = pool_of(entry)
    if isinstance(pool, QueuePool) and "_dec_overflow" not in vars(pool):
        pool._dec_overflow = functools.partial(_give_up, weakref.ref(pool))  # type: ignore[method-assign, assignment]


def _give_up(reference: weakref.ref[QueuePool]) -> bool:
    """In place of `QueuePool._dec_overflow`."""
    pool = reference()
    assert pool is not None  # it is its own
    take_back = type(pool)._dec_overflow
    take_back(pool)
    if is_waited_for(pool) and pool._inc_overflow():
        try:
            pool._pool.put(_ConnectionRecord(pool, connect=False), False)
        except queue.Full:
            take_back(pool)
    return True


def is_waited_for(pool: QueuePool) -> bool:
    """Whether somebody waits for a place in it."""
    return bool(getattr(getattr(pool._pool, "not_empty", None), "_waiters", None))


def take(pool: Pool) -> PoolProxiedConnection:
    """A connection, as `Pool.connect` gives it, but only where nobody has to wait for a place.

    Raises:
        TimeoutError: (SQLAlchemy's) if all places are taken.
    """
    return Pool.connect(_Impatient(pool)) if isinstance(pool, QueuePool) else pool.connect()  # type: ignore[arg-type]


class _Impatient:
    """The pool, to somebody who has no time: SQLAlchemy has one timeout for all."""

    _timeout = 0.0

    def __init__(self, pool: QueuePool) -> None:
        self._real = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _do_get(self) -> Any:
        return type(self._real)._do_get(self)  # type: ignore[arg-type]
