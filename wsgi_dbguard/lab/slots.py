"""The figures of a timeline: what became of the requests of each tenth of a second, and why the guard's failed.

A request belongs to the slot in which it was sent: ``ok``, ``held`` (ok, after more than half a second), ``failed`` or
``wrong``. ``latency`` is the slowest of the slot in seconds, ``opened`` how many connections to the database were
opened in it.

Example::

    figures = figures_of(timeline)
    figures["contenders"]["guard"]["slots"]["failed"][:10]     # of the first second
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from .load import Answer
from .timeline import HOLD, ORDERS, PAGES, Method, Timeline, Track

__all__ = ["HELD", "KINDS", "SLOT", "UNEXPLAINED", "figures_of"]

SLOT = 0.1  # seconds
HELD = 0.5
KINDS = ("ok", "held", "failed", "wrong")
UNEXPLAINED = "not explained"


def figures_of(timeline: Timeline) -> dict[str, Any]:
    """All figures, fit for JSON; contenders in the order of their failed pages, then orders."""
    tracks = sorted(timeline.tracks, key=lambda each: (each.wrong, each.failed("GET"), each.failed("POST")))
    return {
        "seconds": timeline.seconds,
        "slot": SLOT,
        "rates": {"pages": PAGES, "orders": ORDERS},
        "hold": HOLD,
        "faults": [{"name": each.name, "begun": each.begun, "ended": each.ended} for each in timeline.faults],
        "versions": {
            "postgresql": timeline.version,
            "python": platform.python_version(),
            **{name: version(name) for name in ("wsgi-dbguard", "sqlalchemy", "psycopg", "gunicorn")},
        },
        "contenders": {track.contender: _figures(timeline, track) for track in tracks},
    }


def _figures(timeline: Timeline, track: Track) -> dict[str, Any]:
    return {
        "pages": _counts(track.answers["GET"]),
        "orders": {**_counts(track.answers["POST"]), "lost": track.lost, "twice": track.twice},
        "slowest": track.slowest,
        "opened": len(track.opened),
        "slots": _slots(timeline.seconds, track),
        "failures": [
            _failure(timeline, method, answer, guarded=track.contender == "guard")
            for method, answers in track.answers.items()
            for answer in answers
            if answer.kind != "ok"
        ],
    }


def _counts(answers: list[Answer]) -> dict[str, int]:
    kinds = [_kind(answer) for answer in answers]
    return {"requests": len(answers), **{kind: kinds.count(kind) for kind in KINDS}}


def _kind(answer: Answer) -> str:
    return "held" if answer.kind == "ok" and answer.took > HELD else answer.kind


def _slots(seconds: float, track: Track) -> dict[str, list[float]]:
    number = round(seconds / SLOT)
    slots: dict[str, list[float]] = {name: [0] * number for name in (*KINDS, "latency", "opened")}
    for answers in track.answers.values():
        for answer in answers:
            slot = _slot(answer.sent, number)
            slots[_kind(answer)][slot] += 1
            slots["latency"][slot] = max(slots["latency"][slot], round(answer.took, 4))
    for opened in track.opened:
        slots["opened"][_slot(opened, number)] += 1
    return slots


def _slot(second: float, number: int) -> int:
    return min(int(second / SLOT), number - 1)


def _failure(timeline: Timeline, method: Method, answer: Answer, *, guarded: bool) -> dict[str, Any]:
    fault = timeline.fault_at(answer.sent + answer.took)
    name = fault.name if fault else ""
    return {
        "second": round(answer.sent, 2),
        "method": method,
        "fault": name,
        "took": round(answer.took, 2),
        "status": answer.status,
        "why": _why(method, name, answer.what) if guarded else "",
    }


def _why(method: Method, fault: str, what: str) -> str:
    """Why the guard could do no better."""
    if "urn:wsgi-dbguard:outcome-unknown" in what:
        return "The reply to its COMMIT was lost. The client is told so; with settle=True PostgreSQL is asked."
    if method == "POST" and "urn:wsgi-dbguard:unavailable" in what:
        if fault == "demotion":
            return (
                "A refused write is how a worker learns of the demotion; where its new connections came too early and"
                " led to the old primary again, it looks a second later. Nothing was saved, the client is told to send"
                ' it again; with replay="uncommitted" the guard does that, once.'
            )
        return (
            "Its connection broke in the middle of an order. Nothing was saved, the client is told to send it again;"
            ' with replay="uncommitted" the guard does that.'
        )
    return UNEXPLAINED
