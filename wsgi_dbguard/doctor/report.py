"""Findings for people and for programs: text of 80 columns, a table for a terminal, JSON.

Example::

    print(text(facts, findings))
    print(json.dumps(as_dict(facts, findings)))
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wsgi_dbguard.middleware import DBGuard

from .checks.words import count
from .facts import EngineFacts, Facts, encode
from .kinds import KINDS, SEVERITIES, Finding

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_dict", "heading", "kinds_text", "summary", "table", "text"]

WIDTH = 80  # columns
_COLORS = {"error": "red", "warning": "yellow", "info": "cyan"}


def heading(facts: Facts) -> str:
    """What was looked at, in lines of at most 80 columns."""
    app, server = facts.app, facts.server
    kind = "" if app.kind == f"{DBGuard.__module__}.{DBGuard.__qualname__}" else f" ({app.kind})"
    guarded = "wrapped by DBGuard" if app.guard is not None else "not wrapped by DBGuard"
    lines = [("application", f"{app.target}{kind}, {guarded}")]
    if server is not None:
        size = f"{count(server.processes, 'process')} of {count(server.threads, 'thread')}"
        lines.append(("server", f"{server.name} {server.version}".strip() + f", by {server.file}: {size}"))
    for engine in app.engines:
        asked = facts.database(engine)
        version = f", {asked.version}" if asked is not None and asked.version else ""
        lines.append(("engine", f"{engine.url}{version}; {_pool(engine)} made at {engine.made_at}"))
    return "\n".join(_wrapped(content, f"{label + ':':<13}") for label, content in lines)


def _pool(engine: EngineFacts) -> str:
    if engine.pool != "QueuePool" or engine.max_overflow is None or engine.max_overflow < 0:
        return engine.pool
    return f"pool of {engine.pool_size} + {engine.max_overflow}"


def summary(facts: Facts, findings: Sequence[Finding]) -> str:
    """The last lines: how many there are, and what was not looked at."""
    counts = Counter(each.kind.severity for each in findings)
    told = [f"{counts[each]} {each if each == 'info' or counts[each] == 1 else each + 's'}" for each in SEVERITIES]
    lines = [", ".join(told) + "." if findings else "Nothing to report."]
    lines += [f"Not looked at: {each}." for each in facts.unseen]
    return "\n".join(lines)


def text(facts: Facts, findings: Sequence[Finding]) -> str:
    """The whole report in lines of at most 80 columns; what cannot be broken, such as a path, may be longer."""
    parts = [heading(facts)]
    for finding in findings:
        lines = [f"{finding.kind.severity.upper()} {finding.kind.id}"]
        for label, content in (("seen", finding.seen), ("happens", finding.happens), ("change", finding.change)):
            lines.append(_wrapped(content, f"  {label + ':':<9}"))
        parts.append("\n".join(lines))
    parts.append(_wrapped(summary(facts, findings), ""))
    return "\n\n".join(parts)


def _wrapped(content: str, label: str) -> str:
    """Each line of `content` wrapped, the first one after `label`, all others below its end."""
    indent = " " * len(label)
    lines: list[str] = []
    for number, line in enumerate(content.splitlines()):
        lines += textwrap.wrap(
            line,
            WIDTH,
            initial_indent=indent if number or not label else label,
            subsequent_indent=indent or "    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def table(findings: Sequence[Finding]) -> Table:
    """The findings for a terminal, with rich."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(expand=True, show_lines=True)
    made.add_column("Finding", no_wrap=True)
    made.add_column("Seen, what happens because of it, and what to change", ratio=1, overflow="fold")
    for finding in findings:
        color = _COLORS[finding.kind.severity]
        told = f"{escape(finding.seen)}\n\n{escape(finding.happens)}\n\n[bold]{escape(finding.change)}[/]"
        made.add_row(f"[{color}]{finding.kind.severity}[/]\n{finding.kind.id}", told)
    return made


def as_dict(facts: Facts, findings: Sequence[Finding]) -> dict[str, Any]:
    """For JSON. `facts` is what the findings were made from, and no promise."""
    counts = Counter(each.kind.severity for each in findings)
    return {
        "target": facts.app.target,
        "findings": [each.as_dict() for each in findings],
        "counts": {each: counts[each] for each in SEVERITIES},
        "unseen": facts.unseen,
        "facts": encode(facts),
    }


def kinds_text() -> str:
    """All kinds of findings, in lines of at most 80 columns."""
    lines = [_wrapped(kind.about, f"{kind.id:<19} {kind.severity:<8} ") for kind in KINDS.values()]
    return "\n".join(lines)
