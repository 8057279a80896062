"""The timeline as one HTML file without a script: a headline for each contender and its minute, all on one time axis.

Plots are SVG by matplotlib, which makes a page of a few hundred kilobytes that prints and needs no network; a charting
library in JavaScript alone is several megabytes. The figures are in the page too, as JSON in an element of its own.

Example::

    Path("report.html").write_text(page(figures_of(timeline)))
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from html import escape
from itertools import groupby
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MplPath

from .slots import HELD, KINDS, SLOT, UNEXPLAINED

__all__ = ["page"]

COLORS = {"ok": "#b5dcc0", "held": "#f0b429", "failed": "#c1121f", "wrong": "#111111"}
FAULT, INK, MUTED = "#e4e7ec", "#1f2933", "#697586"
WIDTH = 9.2  # inches
HEADER, ROW = 0.34, 1.1
STEP = 0.1  # seconds of latency that can be told apart on paper


def page(figures: dict[str, Any]) -> str:
    """The whole file."""
    names = list(figures["contenders"])
    rows = "".join(_row(name, figures) for name in names)
    key = "".join(f'<span><i style="background:{COLORS[kind]}"></i>{LEGEND[kind]}</span>' for kind in KINDS)
    data = json.dumps(figures).replace("<", "\\u003c")
    versions = figures["versions"]
    rates = figures["rates"]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>wsgi_dbguard: the outage timeline</title><style>{STYLE}</style></head><body>
<header><h1>One bad minute, {len(names)} ways to keep a pool</h1>
<p>{_summary(figures)}</p>
<p class="key">{key}</p>
</header>
<div class="row axis"><div></div><div class="plot">{_header(figures)}</div></div>
{rows}
{_explained(figures)}
<footer>Each contender: gunicorn (gthread, 2 workers x 4 threads), psycopg, {rates["pages"]:g} pages (GET) and
{rates["orders"]:g} orders (POST) per second, at the same time on the same database. Per {SLOT * 1000:g} ms, by when a
request was sent: what became of it; its latency; connections opened. The guard: hold={figures["hold"]:g}, defaults
else. gunicorn {versions["gunicorn"]}, SQLAlchemy {versions["sqlalchemy"]}, PostgreSQL {versions["postgresql"]},
Python {versions["python"]}, wsgi_dbguard {versions["wsgi-dbguard"]}.</footer>
<script type="application/json" id="figures">{data}</script>
</body></html>
"""


CAPTIONS = {"latency": "latency", "opened": "connections opened"}
LEGEND = {
    "ok": "answered",
    "held": f"answered after more than {HELD:g} s",
    "failed": "failed",
    "wrong": "answered wrongly",
}
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; color: #1f2933; max-width: 1240px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin: 0 } header p { margin: .4em 0 }
.key span { margin-right: 1.4em } .key i { display: inline-block; width: .9em; height: .9em; margin-right: .4em;
  border-radius: 2px; vertical-align: -1px }
.row { display: grid; grid-template-columns: 15em 1fr; gap: 1em; border-top: 1px solid #e4e7ec; padding: .35em 0 }
.axis { position: sticky; top: 0; background: #fff; border: 0 } .plot svg { width: 100%; height: auto; display: block }
h2 { font-size: 1.05em; margin: 0 } .row p { margin: 0; font-size: .9em; color: #697586 }
.row b { color: #1f2933 } .bad { color: #c1121f !important } .good { color: #18794e !important }
table { border-collapse: collapse; font-size: .9em } td { padding: .2em 1em .2em 0; vertical-align: top }
td:not(:last-child) { white-space: nowrap }
h3 { font-size: 1.05em; margin: 1.2em 0 .3em } footer { color: #697586; font-size: .85em; margin-top: 1.5em }
@media (max-width: 800px) { .row { grid-template-columns: 1fr } .axis { position: static } }
"""


def _summary(figures: dict[str, Any]) -> str:
    told = []
    for name, found in figures["contenders"].items():
        if name in ("nothing", "pool_pre_ping", "guard"):
            told.append(f"<b>{escape(name)}</b> failed {_of(found['pages'], 'page')}")
    faults = ", ".join(fault["name"] for fault in figures["faults"])
    return f"{'; '.join(told)}. Faults: {escape(faults)}."


def _of(counts: dict[str, int], what: str) -> str:
    return f"{counts['failed'] + counts['wrong']:,} of {counts['requests']:,} {what}s"


def _row(name: str, figures: dict[str, Any]) -> str:
    found = figures["contenders"][name]
    pages, orders = found["pages"], found["orders"]
    failed = pages["failed"] + pages["wrong"]
    mood = "bad" if failed else "good"
    headline = f"{_of(pages, 'page')} failed" if failed else f"all {pages['requests']:,} pages answered"
    ledger = [f"{orders[kind]} orders {kind}" for kind in ("lost", "twice") if orders[kind]]
    wrong = pages["wrong"] + orders["wrong"]
    details = [
        f"{_of(orders, 'order')} failed",
        *([f'<b class="bad">{wrong} answered wrongly</b>'] if wrong else []),
        *(f'<b class="bad">{line}</b>' for line in ledger),
        f"slowest {found['slowest']:.1f} s, {found['opened']:,} connections opened",
    ]
    return (
        f'<div class="row" id="{escape(name.replace(" ", "-"))}"><div><h2>{escape(name)}</h2>'
        f'<p><b class="{mood}">{headline}</b></p>{"".join(f"<p>{line}</p>" for line in details)}</div>'
        f'<div class="plot">{_minute(name, figures)}</div></div>'
    )


def _minute(name: str, figures: dict[str, Any]) -> str:
    """Three plots on one time axis: what became of the requests, how long they took, connections opened."""
    slots = figures["contenders"][name]["slots"]
    figure = Figure(figsize=(WIDTH, ROW))
    outcome, latency, opened = figure.subplots(3, sharex=True, gridspec_kw={"height_ratios": [3, 3, 2], "hspace": 0.18})
    sent = [sum(each) for each in zip(*(slots[kind] for kind in KINDS), strict=True)]
    below = [0.0] * len(sent)
    # What is not well hangs from above, on a ground of what is.
    _area(outcome, below, [float(number > 0) for number in sent], COLORS["ok"])
    above = [1.0] * len(sent)
    for kind in reversed(KINDS[1:]):
        below = [
            top - slots[kind][number] / (sent[number] or 1) if slots[kind][number] else top
            for number, top in enumerate(above)
        ]
        _area(outcome, below, above, COLORS[kind])
        above = below
    nothing = [0.0] * len(sent)
    _area(latency, nothing, [round(took / STEP) * STEP for took in slots["latency"]], MUTED)
    _area(opened, nothing, slots["opened"], INK)
    outcome.set_ylim(0, 1)
    outcome.set_yticks([])
    for axes, what, unit in ((latency, "latency", " s"), (opened, "opened", "")):
        most = max(max(each["slots"][what]) for each in figures["contenders"].values())  # one scale for all of them
        if what == "opened":  # storms beside single ones
            axes.set_yscale("symlog", linthresh=2)
            axes.minorticks_off()
        axes.set_ylim(0, most)
        axes.set_yticks([most], [f"{most:.0f}{unit}"])
        if name == next(iter(figures["contenders"])):
            axes.text(0.004, 0.95, CAPTIONS[what], transform=axes.transAxes, fontsize=7, color=MUTED, va="top")
    for axes in (outcome, latency, opened):
        _frame(axes, figures, label=False)
    return _svg(figure, name)


def _area(axes: Axes, below: list[float], above: list[float], color: str) -> None:
    """A rectangle for each run of equal slots, all of them in one path: the smallest that a plot can be."""
    vertices: list[tuple[float, float]] = []
    begun = 0
    for (low, high), run in groupby(zip(below, above, strict=True)):
        left, right = begun * SLOT, (begun := begun + len(list(run))) * SLOT
        if high > low:
            vertices += [(left, low), (left, high), (right, high), (right, low), (left, low)]
    if vertices:
        codes = [MplPath.MOVETO, MplPath.LINETO, MplPath.LINETO, MplPath.LINETO, MplPath.CLOSEPOLY]
        path = MplPath(vertices, codes * (len(vertices) // 5))
        axes.add_patch(PathPatch(path, facecolor=color, linewidth=0))


def _header(figures: dict[str, Any]) -> str:
    figure = Figure(figsize=(WIDTH, HEADER))
    axes = figure.subplots()
    axes.set_yticks([])
    axes.set_ylim(0, 1)
    for fault in figures["faults"]:
        axes.text(fault["begun"], 0.35, fault["name"], color=INK, fontsize=8)
    _frame(axes, figures, label=True)
    return _svg(figure, "axis")


def _frame(axes: Axes, figures: dict[str, Any], *, label: bool) -> None:
    seconds = figures["seconds"]
    axes.set_xlim(0, seconds)
    for fault in figures["faults"]:
        axes.axvspan(fault["begun"], fault["ended"], color=FAULT, linewidth=0, zorder=0)
        axes.axvline(fault["begun"], color=MUTED, linewidth=0.6, zorder=3)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7, labelcolor=MUTED, labelbottom=label, pad=1)
    axes.set_xticks([seconds * part / 6 for part in range(7)])
    if label:
        axes.xaxis.set_major_formatter(lambda second, position: f"{second:g} s")


def _svg(figure: Figure, salt: str) -> str:
    figure.subplots_adjust(left=0.045, right=0.985, top=0.98, bottom=0.4 if salt == "axis" else 0.02)
    written = io.StringIO()
    # Text stays text. The salt keeps apart the ids of several plots in one page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    _, begin, rest = written.getvalue().partition("<svg")
    return begin + re.sub(r"(\d\.\d\d)\d+", r"\1", rest)  # hundredths of a point are enough


def _explained(figures: dict[str, Any]) -> str:
    """Each failure of the guard, with its reason."""
    guard = figures["contenders"].get("guard")
    if guard is None or not guard["failures"]:
        return ""
    groups = Counter((each["fault"], each["method"], each["status"], each["why"]) for each in guard["failures"])
    lines = "".join(
        f"<tr><td>{escape(fault)}</td><td>{number} x {method} {escape(status)}</td>"
        f"<td{' class=bad' if why == UNEXPLAINED else ''}>{escape(why)}</td></tr>"
        for (fault, method, status, why), number in groups.items()
    )
    return f"<h3>What the guard could not answer</h3><table>{lines}</table>"
