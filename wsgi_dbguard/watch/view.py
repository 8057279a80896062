"""The beats for people: a line for each round, or on a terminal a table with a chart of the latencies.

Example::

    print(line(beats, clock="12:00:01"))
    live.update(screen(heart.beats, title="postgresql://db.example/app", width=80))
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from .beats import Beat, Way
from .verdict import DEAD, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

__all__ = ["figures", "line", "screen", "verdict_text"]

ABOUT = {
    Way.FRESH: "opened each time",
    Way.KEPT: "one, kept open",
    Way.POOL: "a guarded pool",
}
_ORDER = (Way.FRESH, Way.KEPT, Way.POOL)
_BARS = "▁▂▃▄▅▆▇█"
_MARGIN = 8  # columns beside the chart: the name of the way
_WIDE = 80  # columns; in fewer the table has the names of the ways only
_ERRORS = 3  # the last ones, below the chart


def line(beats: Sequence[Beat], *, clock: str) -> str:
    """One round in one line, with a further line for each error."""
    by_way = {beat.way: beat for beat in beats}
    parts = [f"{way} {_short(by_way[way]):<14}" for way in _ORDER if way in by_way]
    lines = [f"{clock}  {'  '.join(parts)}".rstrip()]
    lines += [f"          {beat.way}: {beat.error}" for beat in by_way.values() if beat.error]
    lines += [
        f"          {beat.way}: the guard replaced {', '.join(f'{n} {cause}' for cause, n in beat.replaced.items())}"
        for beat in by_way.values()
        if beat.replaced
    ]
    return "\n".join(lines)


def _short(beat: Beat) -> str:
    return _milliseconds(beat.took) if beat.trouble is None else beat.trouble.upper()


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def figures(beats: Sequence[Beat], way: Way) -> dict[str, Any]:
    """Of one way: how many beats, failures and replaced connections; latencies in milliseconds, None without any."""
    mine = [beat for beat in beats if beat.way is way]
    times = [1000 * beat.took for beat in mine if beat.trouble is None]
    return {
        "beats": len(mine),
        "failed": sum(beat.trouble is not None for beat in mine),
        "replaced": sum(count for beat in mine for cause, count in beat.replaced.items() if cause in DEAD),
        "last_ms": round(1000 * mine[-1].took, 2) if mine and mine[-1].trouble is None else None,
        "median_ms": round(median(times), 2) if times else None,
        "slowest_ms": round(max(times), 2) if times else None,
    }


def screen(beats: Sequence[Beat], *, title: str, width: int) -> RenderableType:
    """A table and a chart that fit into `width` columns; a beat that failed is a red x."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, overflow="ellipsis", no_wrap=True), title_justify="left", expand=False)
    table.add_column("Way", no_wrap=True, min_width=max(map(len, _ORDER)))
    for name in ("Beats", "Failed", "Last", "Median", "Slowest"):
        table.add_column(name, justify="right", no_wrap=True)
    for way in _ORDER:
        told = figures(beats, way)
        failed = f"[{'red' if told['failed'] else 'green'}]{told['failed']}[/]"
        times = ["" if told[key] is None else f"{told[key]:.1f} ms" for key in ("last_ms", "median_ms", "slowest_ms")]
        about = f"{way}: {ABOUT[way]}" if width >= _WIDE else way.value
        table.add_row(escape(about), str(told["beats"]), failed, *times)
    room = max(width - _MARGIN - 1, 10)
    highest = max((beat.took for beat in _last(beats, room) if beat.trouble is None), default=0.0)
    parts: list[RenderableType] = [table]
    for way in _ORDER:
        bars = chart([beat for beat in beats if beat.way is way][-room:], highest)
        parts.append(Text.assemble(f"{way:<{_MARGIN}}", bars, overflow="crop", no_wrap=True))
    parts.append(Text(f"{'':<{_MARGIN}}█ = {_milliseconds(highest)}, x = failed, r = connection replaced", style="dim"))
    told_errors = [f"{beat.at:6.1f} s  {beat.way}: {beat.error}" for beat in beats if beat.error][-_ERRORS:]
    parts += [Text(each, style="red", overflow="ellipsis", no_wrap=True) for each in told_errors]
    return Group(*parts)


def _last(beats: Sequence[Beat], rounds: int) -> Sequence[Beat]:
    return beats[-rounds * len(_ORDER) :]


def chart(beats: Sequence[Beat], highest: float) -> Text:
    """One column for each beat: its latency as a bar, of which the full one is `highest` seconds."""
    from rich.text import Text

    text = Text()
    for beat in beats:
        if beat.trouble is not None:
            text.append("x", style="bold red")
        elif any(cause in DEAD for cause in beat.replaced):
            text.append("r", style="bold yellow")
        else:
            share = beat.took / highest if highest else 0.0
            text.append(_BARS[min(int(share * len(_BARS)), len(_BARS) - 1)], style="green")
    return text


def verdict_text(found: Verdict) -> str:
    """The verdict, and its evidence in a line each."""
    return "\n".join([f"Verdict: {found.headline}", *(f"  - {each}" for each in found.evidence)])
