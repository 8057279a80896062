"""What the guard costs, beside everything else that keeps connections alive, on this machine::

    .ci/venv python tests/benchmarks/run.py             # three quarters of an hour
    .ci/venv python tests/benchmarks/run.py --quick     # five minutes
    .ci/venv python tests/benchmarks/run.py --only checkouts --delay 0 --delay 1 --json figures.json
    .ci/venv python tests/benchmarks/run.py --only served --server "gunicorn gthread"

All contenders run in one process and in turns (how time is taken: measuring.py); under servers, each has a server of
its own and they are loaded in turns. Ratios come first, as they hold on other machines too; then medians with the
quartiles around them. On a machine that does anything else the figures are worthless: the load average is printed with
them. At the end each goal of the project with its figure; `--profile` tells where the time goes.

What is missing is told and skipped: wrk, MariaDB and mysqlclient come from Debian (``apt-get install wrk``;
``.ci/venv pytest --version`` installs the others).

Exit code 0, also when a goal is missed; 1 if a contender did not work.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import profiles
from measuring import FULL, QUICK, SMOKE, Goal, Report, Row
from rich.console import Console
from rich.table import Table

from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.servers import APPS

PARTS = ("checkouts", "cold", "growth", "workers", "served", "idempotent")
VERSIONS = ("sqlalchemy", "psycopg2-binary", "psycopg", "psycopg-pool", "dbutils", "pymysql", "gunicorn", "pyuwsgi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, delays, servers: five minutes")
    parser.add_argument("--smoke", action="store_true", help="as little as possible: whether it runs at all")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument("--delay", action="append", type=float, metavar="MS", help="so far away; may be repeated")
    parser.add_argument("--server", action="append", choices=FULL.servers, help="under this one; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well, after each part")
    parser.add_argument("--profile", action="store_true", help="and where the time goes")
    args = parser.parse_args()
    if args.json:
        try:
            args.json.open("a").close()  # now, and not in half an hour
        except OSError as error:
            parser.error(f"--json: {error}")
    effort = SMOKE if args.smoke else QUICK if args.quick else FULL
    if args.delay:
        delays = tuple(each / 1000 for each in args.delay)
        effort = replace(effort, delays=delays, served_delays=delays)
    if args.server:
        effort = replace(effort, servers=tuple(args.server))
    console = Console(width=190, highlight=False)
    begun, load = time.monotonic(), os.getloadavg()[0]
    report = Report(lambda line: print(f"{time.monotonic() - begun:5.0f} s  {line}", file=sys.stderr))
    sys.path.insert(0, str(APPS))  # the contenders are there
    for part in args.only or PARTS:
        try:
            importlib.import_module(part).run(effort, report)
        except ServerMissing as missing:
            report.skip(part, missing)
        if args.json:
            args.json.write_text(json.dumps(_as_dict(report, load), indent=1))
    tables: dict[str, list[Row]] = {}
    for row in report.rows:
        title = f"{row.what}, {row.unit}{f' ({row.clock})' if row.clock else ''}"
        tables.setdefault(title, []).append(row)
    for title, rows in tables.items():
        console.print(_table(title, rows))
    profile: dict[str, list[profiles.Line]] = {}
    if args.profile:
        try:
            profile = profiles.run()
        except ServerMissing as missing:
            report.skip("profile", missing)
    for title, lines in profile.items():
        console.print(_profile(title, lines))
    if report.goals:
        console.print(_goals(report.goals))
    for line in report.skipped:
        console.print(f"not measured: {line}")
    busy = f"load average before {load:.1f}" + (": the machine was busy, trust no figure" if load > 0.5 else "")
    console.print(f"{time.monotonic() - begun:.0f} s, {busy}")
    if args.json:
        args.json.write_text(json.dumps(_as_dict(report, load) | {"profile": profile}, indent=1))


def _table(title: str, rows: list[Row]) -> Table:
    """A column for each contender: the ratio to nothing, and below it the figure and its quartiles."""
    names = list(dict.fromkeys(name for row in rows for name in row.samples))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.where, *(_cell(row, name) for name in names))
    return table


def _cell(row: Row, name: str) -> str:
    if name not in row.samples:
        return ""
    low, high = row.spread(name)
    figure = f"{_number(row.median(name))} [dim]{_number(low)}-{_number(high)}[/]"
    if row.base not in row.samples:
        return figure
    return f"[bold]{'1' if name == row.base else f'{row.ratio(name):.2f}'} x[/]\n{figure}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _profile(title: str, lines: list[profiles.Line]) -> Table:
    table = Table("", title=f"profile: {title}", title_justify="left")
    for column in ("own µs", "calls"):
        table.add_column(column, justify="right")
    for name, own, calls in lines:
        table.add_row(name, _number(own), f"{calls}")
    return table


def _goals(goals: list[Goal]) -> Table:
    table = Table("goal", title="Goals", title_justify="left")
    for title in ("figure", "bound", "", "floor"):
        table.add_column(title, justify="right")
    for goal in goals:
        floor = "" if goal.floor is None else f"{goal.floor:.3g}"
        bound = f"{'at least' if goal.more else 'at most'} {goal.bound:g}"
        table.add_row(goal.text, f"{goal.figure:.3g}", bound, "[green]met[/]" if goal.met else "[red]missed[/]", floor)
    return table


def _as_dict(report: Report, load: float) -> dict[str, Any]:
    return {
        "rows": [row.as_dict() for row in report.rows],
        "goals": [goal.as_dict() for goal in report.goals],
        "not measured": report.skipped,
        "load average before": load,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        "versions": {name: _version(name) for name in VERSIONS},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # psycopg2 can be had by another name
        return None


if __name__ == "__main__":
    main()
