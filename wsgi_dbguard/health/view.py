"""What the page says, as one document: the workers' figures, and what follows from them in a word and a sentence."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .snapshot import SLOT, SLOTS

__all__ = ["databases", "document"]

_SILENT = 15.0  # seconds: three signs of life are missing


def document(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """`workers` with the one that answers first, as `Reporter.workers` has them."""
    now = time.time()
    answered_by = workers[0]["pid"]
    for each in workers:
        each["silent_for"] = round(silent, 1) if (silent := now - each["written"]) > _SILENT else None
    state, headline, detail = _verdict(workers)
    ordered = sorted(workers, key=lambda each: (each["started"], each["pid"]))
    return {
        "state": state,
        "headline": headline,
        "detail": detail,
        "at": round(now, 1),
        "answered_by": answered_by,
        "databases": databases(ordered, int(now // SLOT)),
        "workers": ordered,
    }


def _verdict(workers: list[dict[str, Any]]) -> tuple[str, str, str]:
    """A word, a sentence, and what there is to say of it."""
    pools = [pool for worker in workers for pool in worker["pools"]]
    away = [pool for pool in pools if pool["state"] == "away"]
    if away:
        longest = max(pool["away_for"] for pool in away)
        detail = f"{_of(away, pools)} cannot connect, for {spell(longest)} by now."
        return "away", f"Database away: {_names(away)}", detail
    if workers and all(worker["ending"] for worker in workers):
        return "ending", "The server is ending", "It was told to end, and finishes the requests that it has begun."
    exhausted = [pool for pool in pools if pool["state"] == "exhausted"]
    if exhausted:
        return (
            "exhausted", f"Requests wait for a connection: {_names(exhausted)}",
            f"{_of(exhausted, pools)} have every connection in use.",
        )  # fmt: skip
    silent = sum(worker["silent_for"] is not None for worker in workers)
    if silent:
        return (
            "silent",
            "A worker is silent",
            f"{silent} of {len(workers)} workers gave no sign for a while: busy, or stuck.",
        )
    if not any(pool["state"] == "ready" for pool in pools):
        return "unused", "No database was used yet", "The first request that needs one will open a connection."
    return "ready", "All databases can be reached", "Each was there when it was last asked."


def _names(pools: Iterable[dict[str, Any]]) -> str:
    return ", ".join(sorted({pool["name"] for pool in pools}))


def _of(some: list[dict[str, Any]], pools: list[dict[str, Any]]) -> str:
    names = {pool["name"] for pool in some}
    total = sum(pool["name"] in names for pool in pools)
    return f"{len(some)} of {total} pools" if total > 1 else "The only pool of it"


def databases(workers: list[dict[str, Any]], now: int) -> list[dict[str, Any]]:
    """The sums over all workers, by database, with the steps of its plots from the oldest to the present one."""
    found: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for pool in worker["pools"]:
            each = found.setdefault(
                pool["name"],
                {"name": pool["name"], "steps": [[0] * 5 for _ in range(SLOTS)], "sums": Counter(), "known": 0,
                 "checks": Counter(), "retired": Counter()},
            )  # fmt: skip
            each["checks"].update(pool["checks"])
            each["retired"].update(pool["retired"])
            each["sums"].update({key: pool[key] for key in _SUMS})
            for at, *values in pool.get("history", ()):
                place = at - now + SLOTS - 1
                if 0 <= place < SLOTS:
                    step = each["steps"][place]
                    each["known"] = max(each["known"], SLOTS - place)
                    for index, value in enumerate(values):
                        step[index] += value
    return list(found.values())


_SUMS = (
    "in_use", "connections", "idle", "waiting", "checkouts", "connects", "pings", "restored", "invalidations",
    "outages", "held", "refused",
)  # fmt: skip


def spell(seconds: float) -> str:
    """A duration for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} days"
