"""What one worker has to tell: plain figures, fit for JSON, without anything secret.

``describe`` is the present state of the process, with the counts of `PoolGuard.stats` and what `History` has kept of
the last ten minutes. Names of pools are addresses, see `guards.address`; events are words of ours (`events`).
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

from sqlalchemy.pool import Pool, QueuePool

from wsgi_dbguard import events, places, tally, worker
from wsgi_dbguard.guards import address, engine_of, guards, numbered
from wsgi_dbguard.metrics.instruments import State, checks, most, retired
from wsgi_dbguard.pool import PoolGuard

from . import readiness

__all__ = ["SLOT", "SLOTS", "History", "describe"]

SLOT = 5
"""Seconds of one step of the plots."""
SLOTS = 120

_started = time.time()


class History:
    """What a pool did lately: for each step its number since 1970, the most connections in use and the most open, the
    most callers waiting, how many checkouts, and whether the database was away."""

    def __init__(self) -> None:
        self._steps: dict[str, deque[list[int]]] = {}
        self._checkouts: dict[str, int] = {}

    def note(self, pools: list[dict[str, Any]]) -> None:
        """To be called each second."""
        now = int(time.time() // SLOT)
        for pool in pools:
            name = pool["name"]
            steps = self._steps.setdefault(name, deque(maxlen=SLOTS))
            before = self._checkouts.get(name, 0)
            self._checkouts[name] = pool["checkouts"]
            if not steps or steps[-1][0] != now:
                steps.append([now, 0, 0, 0, 0, 0])
            last = steps[-1]
            last[1] = max(last[1], pool["in_use"])
            last[2] = max(last[2], pool["connections"])
            last[3] = max(last[3], pool["waiting"])
            last[4] += max(0, pool["checkouts"] - before)
            last[5] = max(last[5], int(pool["state"] == "away"))

    def of(self, name: str) -> list[list[int]]:
        """The steps of one pool, oldest first."""
        return [list(each) for each in self._steps.get(name, ())]


def describe(requests: int) -> dict[str, Any]:
    """This process as it is now. `requests`: how many its guards have let in."""
    names: dict[str, str] = {}
    found = [pool for guard in guards() if (pool := _pool(guard, names)) is not None]
    return {
        "pid": os.getpid(),
        "started": round(_started, 1),
        "ending": worker.is_ending(),
        "requests": requests,
        "replays": _counts("replays", "succeeded", "failed"),
        "leaks": _counts("leaks", "connection", "session"),
        "severed": tally.counts["severed", ""],
        "pools": found,
        "events": [
            {
                "first": round(each.first, 1),
                "last": round(each.last, 1),
                "count": each.count,
                "pool": names.get(each.pool, ""),
                "what": each.what,
                "bad": each.bad,
            }
            for each in events.recent()
        ],
    }


def reset() -> None:
    """In a new process."""
    global _started
    _started = time.time()


def _counts(what: str, *kinds: str) -> dict[str, int]:
    return {kind: tally.counts[what, kind] for kind in kinds}


def _pool(guard: PoolGuard, names: dict[str, str]) -> dict[str, Any] | None:
    engine = engine_of(guard)
    if engine is None:
        return None
    names[guard.name] = name = numbered(address(engine), names.values())
    stats = guard.stats()
    limit = most(engine.pool)
    in_use = stats["connections"] - stats["idle"]
    state = State(engine.pool, stats, 0, 0)
    away_for = readiness.away_for(guard)  # read once: it may come back at any moment
    return {
        "name": name,
        "state": "away" if away_for is not None else _state(stats, engine.pool),
        "away_for": None if away_for is None else round(away_for, 1),
        "in_use": in_use,
        "limit": limit,
        **{
            key: value
            for key, value in stats.items()
            if key not in ("pid", "away", "replaced", "retired", "retired_by_cause")
        },
        "checks": {" ".join(kind): int(number or 0) for kind, number in checks(state).items()},
        "retired": {cause: int(number or 0) for (cause,), number in retired(state).items()},
    }


def _state(stats: dict[str, Any], pool: Pool) -> str:
    if isinstance(pool, QueuePool) and places.is_waited_for(pool):
        return "exhausted"
    return "ready" if stats["connects"] or stats["connections"] else "unused"
