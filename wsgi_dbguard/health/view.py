"""What the page says, as one document: the workers' figures, and what follows from them in a word and a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from .snapshot import SLOT, SLOTS

__all__ = ["databases", "document"]

_SILENT = 15.0  # seconds: three signs of life are missing
_SHOWN = 50  # events
_NEAR = 20  # events that one is compared with
_TOGETHER = 5.0  # seconds


def document(workers: list[dict[str, Any]], now: float) -> dict[str, Any]:
    """`workers` with the one that answers first, as `Reporter.workers` has them; `now` is `time.time()`."""
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
        "events": _events(ordered),
        "databases": databases(ordered, int(now // SLOT)),
        "workers": ordered,
    }


def _verdict(workers: list[dict[str, Any]]) -> tuple[str, str, str]:
    """A word, a sentence, and what there is to say of it."""
    pools = [pool for worker in workers for pool in worker["pools"]]
    away = [pool for pool in pools if pool["state"] == "away"]
    if away:
        longest = max(pool["away_for"] for pool in away)
        detail = f"{_of(workers, 'away')} cannot connect, for {spell(longest)} by now."
        return "away", f"Database away: {_names(away)}", detail
    if workers and all(worker["ending"] for worker in workers):
        return "ending", "The server is ending", "It was told to end, and finishes the requests that it has begun."
    exhausted = [pool for pool in pools if pool["state"] == "exhausted"]
    if exhausted:
        return (
            "exhausted", f"Requests wait for a connection: {_names(exhausted)}",
            f"{_of(workers, 'exhausted')} have every connection in use.",
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


def _events(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of all workers, the latest first; what several met at the same time is one."""
    found: list[dict[str, Any]] = []
    every = [{**event, "pids": [worker["pid"]]} for worker in workers for event in reversed(worker.pop("events"))]
    for event in sorted(every, key=lambda each: float(each["last"]), reverse=True):
        for known in found[-_NEAR:]:
            same = (known["what"], known["pool"]) == (event["what"], event["pool"])
            if same and event["pids"][0] not in known["pids"] and known["first"] - event["last"] < _TOGETHER:
                known["count"] += event["count"]
                known["pids"] += event["pids"]
                break
        else:
            found.append(event)
    return found[:_SHOWN]


def _names(pools: Iterable[dict[str, Any]]) -> str:
    return ", ".join(sorted({pool["name"] for pool in pools}))


def _of(workers: list[dict[str, Any]], state: str) -> str:
    number = sum(any(pool["state"] == state for pool in worker["pools"]) for worker in workers)
    return f"{number} of {len(workers)} workers" if len(workers) > 1 else "The only worker"


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
