"""The page's plots: inline SVG from a database's steps, with a sentence for those who do not see them.

Only shapes are in the SVG, which is stretched to the width there is; words stand around it. An outage is a hatched
band, so that it is told by more than a colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .snapshot import SLOT, SLOTS

__all__ = ["connections", "traffic"]

_HEIGHT = 100
_IN_USE, _OPEN, _WAITING, _CHECKOUTS, _AWAY = range(5)


def connections(database: dict[str, Any], number: int) -> str:
    """How many connections were open, and in use; `number` tells plots of one page apart."""
    steps, known, sums = database["steps"], database["known"], database["sums"]
    top = max(1, *(max(step[_IN_USE], step[_OPEN], step[_WAITING]) for step in steps))
    used, opened, waiting = ([step[column] for step in steps] for column in (_IN_USE, _OPEN, _WAITING))
    shapes = [
        _outages(steps, number),
        f'<path class="area" d="{_path(used, top, known, closed=True)}"/>',
        f'<path class="line open" d="{_path(opened, top, known)}"/>',
    ]
    words = f"seen each second: now {sums['in_use']} in use of {sums['connections']} open"
    words += f"; at most {max(used)} in use and {max(opened)} open"
    keys = '<span class="key area">in use</span> <span class="key open">open</span>'
    if any(waiting):
        shapes.append(f'<path class="line waiting" d="{_path(waiting, top, known)}"/>')
        words += f"; at most {max(waiting)} requests waiting"
        keys += ' <span class="key waiting">waiting for the database</span>'
    return _figure("Connections", words, keys, shapes, str(top), database, number)


def traffic(database: dict[str, Any], number: int) -> str:
    """How many connections were taken in each second."""
    steps, known = database["steps"], database["known"]
    rates = [step[_CHECKOUTS] / SLOT for step in steps]
    # The present step is not over yet.
    rates[-1] = rates[-2] if known > 1 else rates[-1]
    top = max(0.2, *rates)
    shapes = [_outages(steps, number), f'<path class="area" d="{_path(rates, top, known, closed=True)}"/>']
    words = f"now {rates[-1]:.1f} a second, at most {max(rates):.1f}"
    return _figure(
        "Connections taken from the pool, each second", words, "", shapes, f"{top:.3g}", database, number + 1000
    )


def _figure(
    title: str, words: str, keys: str, shapes: list[str], top: str, database: dict[str, Any], number: int
) -> str:
    away = sum(bool(step[_AWAY]) for step in database["steps"])
    if away:
        words += f"; the database was away in about {away * SLOT} s of it"
        keys += ' <span class="key away">database away</span>'
    label = escape(f"{title} of {database['name']} in the last {SLOTS * SLOT // 60} minutes: {words}.")
    return (
        f'<figure><figcaption><b>{title}</b> <span class="keys">{keys}</span></figcaption>'
        f'<div class="plot"><span class="top" aria-hidden="true">{top}</span>'
        f'<svg viewBox="0 0 {SLOTS} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<defs><pattern id="hatch{number}" width="3" height="6" patternUnits="userSpaceOnUse">'
        f'<rect class="hatch" width="1.5" height="6"/></pattern></defs>'
        f"{''.join(shapes)}</svg>"
        f'<span class="from" aria-hidden="true">{SLOTS * SLOT // 60} min ago</span>'
        f'<span class="to" aria-hidden="true">now</span></div>'
        f'<p class="words">{escape(words[0].upper() + words[1:])}.</p></figure>'
    )


def _path(values: Sequence[float], top: float, known: int, *, closed: bool = False) -> str:
    """Steps from left to right, of those that are known."""
    first = len(values) - known
    parts: list[str] = []
    for place in range(first, len(values)):
        height = _HEIGHT - 1 - values[place] / top * (_HEIGHT - 4)
        parts.append(f"{'M' if not parts else 'L'}{place} {height:.1f}H{place + 1}")
    if closed and parts:
        parts.append(f"V{_HEIGHT}H{first}Z")
    return "".join(parts)


def _outages(steps: Sequence[Sequence[int]], number: int) -> str:
    bands: list[str] = []
    begin: int | None = None
    for place in range(len(steps) + 1):
        away = place < len(steps) and bool(steps[place][_AWAY])
        if away and begin is None:
            begin = place
        elif not away and begin is not None:
            size = f'x="{begin}" width="{place - begin}" height="{_HEIGHT}"'
            bands.append(f'<rect class="band" {size}/><rect fill="url(#hatch{number})" {size}/>')
            begin = None
    return "".join(bands)
