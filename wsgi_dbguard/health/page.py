"""The status page as HTML: `view.document` in words, tables and plots. It asks for itself again every two seconds.

Plain enough to be read without its style, and without scripts (it is loaded anew then). Every value is escaped, and
nothing from outside can run or be loaded: the Content-Security-Policy names the one style and the one script by hash.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from . import plots
from .view import spell

__all__ = ["HEADERS", "render"]

_STYLE = Path(__file__).with_name("page.css").read_text()
_SCRIPT = Path(__file__).with_name("page.js").read_text()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [("Content-Security-Policy", _POLICY), ("Referrer-Policy", "no-referrer")]

# Word, and mark: each state has a shape of its own as well as a colour.
_STATES = {
    "ready": ("Reachable", "●", "good"),
    "away": ("Away", "■", "bad"),
    "exhausted": ("Exhausted", "▲", "warn"),
    "unused": ("Not used yet", "○", "quiet"),
    "ending": ("Ending", "◆", "warn"),
    "silent": ("Silent", "▲", "warn"),
}
_COLOURS = {"good": "#1a7f37", "bad": "#c62828", "warn": "#b26a00", "quiet": "#667085"}
_CAUSES = {
    "dead": "its socket said that it was dead",
    "ping": "it did not answer a ping",
    "condemned": "older than one that was found dead",
    "max_lifetime": "as old as it may become",
    "idle_timeout": "not needed for a long time",
    "read_only": "its server had become read-only (failover)",
    "unread": "an answer was left on it",
    "deadline": "a query on it was cancelled",
    "changed": "a request had left settings or locks on it",
    "forked": "it was the parent process's",
}


def render(document: dict[str, Any]) -> str:
    """The whole page."""
    _, mark, tone = _STATES[document["state"]]
    icon = (
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
        f"%3Ccircle cx='8' cy='8' r='7' fill='%23{_COLOURS[tone][1:]}'/%3E%3C/svg%3E"
    )
    count = len(document["workers"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>{escape(document["headline"])}</title>
<link rel="icon" href="{icon}">
<noscript><meta http-equiv="refresh" content="5"></noscript>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#workers">Skip to the workers</a>
<header>
<div class="bar"><span>wsgi_dbguard</span>
<button type="button" id="pause" aria-pressed="false" hidden>Pause</button></div>
<div id="verdict" role="status"><h1 class="{tone}"><span class="mark" aria-hidden="true">{mark}</span>
<span>{escape(document["headline"])}</span></h1></div>
<div id="detail"><p>{escape(document["detail"])}</p>
<p class="quiet">{count} worker{"s" if count != 1 else ""}. Answered by process {document["answered_by"]} at
{_time(document["at"])} UTC.</p></div>
<p id="stale" class="bad" role="alert" hidden></p>
</header>
<main>
<section aria-labelledby="workers"><h2 id="workers">Workers</h2><div id="workers-now">{_workers(document)}</div>
</section>
<section aria-labelledby="lately"><h2 id="lately">The last ten minutes</h2><div id="plots-now">{_plots(document)}</div>
</section>
<section aria-labelledby="events"><h2 id="events">Events</h2><div id="events-now">{_events(document)}</div></section>
<section aria-labelledby="counts"><h2 id="counts">Checks and replacements</h2>
<div id="counts-now">{_counts(document)}</div></section>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _time(seconds: float) -> str:
    at = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{at.isoformat(timespec="seconds")}">{at:%H:%M:%S}</time>'


def _badge(state: str, more: str = "") -> str:
    word, mark, tone = _STATES[state]
    return f'<span class="state {tone}"><span aria-hidden="true">{mark}</span> {word}{escape(more)}</span>'


def _table(caption: str, heads: list[str], rows: list[list[str]], *, numbers: int = 0) -> str:
    """Cells are HTML. The first is the row's head, the last `numbers` are numbers."""
    first = len(heads) - numbers
    shape = "wide" if len(heads) > 2 else "plain"
    kinds = [' class="number"' if index >= first else "" for index in range(len(heads))]
    lines = []
    for row in rows:
        # One element in each: on a narrow screen head and cell stand side by side.
        cells = [f'<th scope="row" data-head="{heads[0]}"><span>{row[0]}</span></th>']
        cells += [
            f'<td{kind} data-head="{head}"><span>{cell}</span></td>'
            for kind, head, cell in zip(kinds[1:], heads[1:], row[1:], strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th scope="col"{kind}>{each}</th>' for kind, each in zip(kinds, heads, strict=True))
    return (
        f'<table class="{shape}"><caption class="hidden">{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _workers(document: dict[str, Any]) -> str:
    rows = [
        [str(worker["pid"]), *_pool(worker, pool), spell(document["at"] - worker["started"]), str(worker["requests"])]
        for worker in document["workers"]
        for pool in worker["pools"] or [None]
    ]
    heads = ["Process", "Database", "State", "In use", "Idle", "Limit", "Waiting", "Runs for", "Requests"]
    return _table("Each worker's pools", heads, rows, numbers=6)


def _pool(worker: dict[str, Any], pool: dict[str, Any] | None) -> list[str]:
    if worker["silent_for"] is not None:
        state = _badge("silent", f" for {spell(worker['silent_for'])}")
    elif worker["ending"]:
        state = _badge("ending")
    elif pool is None:
        state = _badge("unused")
    else:
        away = pool["away_for"]
        state = _badge(pool["state"], "" if away is None else f" for {spell(away)}")
    if pool is None:
        return ["none", state, "0", "0", "", "0"]
    limit = "none" if pool["limit"] is None else str(pool["limit"])
    return [_name(pool), state, str(pool["in_use"]), str(pool["idle"]), limit, str(pool["waiting"])]


def _name(pool: dict[str, Any]) -> str:
    return f'<span class="name">{escape(pool["name"])}</span>'


def _plots(document: dict[str, Any]) -> str:
    parts = []
    for number, database in enumerate(document["databases"]):
        parts.append(
            f"<h3>{_name(database)}</h3><div class='plots'>{plots.connections(database, number)}"
            f"{plots.traffic(database, number)}</div>"
        )
    return "".join(parts) or "<p>No pool is known yet.</p>"


def _events(document: dict[str, Any]) -> str:
    rows = []
    for event in document["events"]:
        what = escape(event["what"][:1].upper() + event["what"][1:])
        times = f' <span class="quiet">({event["count"]} times)</span>' if event["count"] > 1 else ""
        mark = '<span class="bad" aria-hidden="true">■</span> ' if event["bad"] else ""
        pids = ", ".join(map(str, event["pids"]))
        rows.append([_time(event["last"]), f"{mark}{what}{times}", escape(event["pool"]), pids])
    if not rows:
        return "<p>Nothing has happened since the workers began.</p>"
    return _table("What happened, the latest first", ["Time (UTC)", "What", "Database", "Process"], rows)


def _counts(document: dict[str, Any]) -> str:
    parts = []
    for database in document["databases"]:
        sums, checks = database["sums"], database["checks"]
        rows = [
            ["Taken from the pool", str(sums["checkouts"])],
            ["Opened", str(sums["connects"])],
            ["Found alive by their socket", str(checks["socket alive"])],
            ["Found dead by their socket", str(checks["socket dead"])],
            ["Pinged, and alive", str(checks["ping alive"])],
            ["Pinged, and dead", str(checks["ping dead"])],
            ["Outages, counted by each worker", str(sums["outages"])],
            ["Requests that waited for an outage to end", str(sums["held"])],
            ["Requests that were told at once that it is away", str(sums["refused"])],
        ]
        causes = [
            [f"{escape(cause)}<span class='quiet'>: {escape(_CAUSES.get(cause, ''))}</span>", str(number)]
            for cause, number in database["retired"].items()
            if number
        ]
        replaced = (
            _table("Connections that were replaced or closed, by cause", ["Replaced or closed because", "Number"],
                   causes, numbers=1)
            if causes
            else "<p>No connection had to be replaced.</p>"
        )  # fmt: skip
        counted = _table("Connections, counted", ["Connections", "Number"], rows, numbers=1)
        parts.append(f"<h3>{_name(database)}</h3><div class='plots'><div>{counted}</div><div>{replaced}</div></div>")
    parts.append(_of_processes(document["workers"]))
    return "".join(parts)


def _of_processes(workers: list[dict[str, Any]]) -> str:
    def total(what: str, kind: str) -> str:
        return str(sum(worker[what][kind] for worker in workers))

    rows = [
        ["Ran a second time, and succeeded", total("replays", "succeeded")],
        ["Ran a second time, and failed", total("replays", "failed")],
        ["Left a connection checked out", total("leaks", "connection")],
        ["Left a session in a transaction", total("leaks", "session")],
    ]
    return f"<h3>Requests</h3>{_table('Requests, counted', ['Requests', 'Number'], rows, numbers=1)}"
