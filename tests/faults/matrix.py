"""Every fault against every driver, as a table: requests failed, and the slowest, without and with the guard.

Each fault is injected into real servers, for all contenders at the same time. Run it with::

    .ci/venv python tests/faults/matrix.py [--driver D] [--fault F] [--system] [--write]

`--fault` takes a part of a title; `--system`: PostgreSQL is Debian's, not the wheel's. `--write` plays everything, on
both, and writes MATRIX.md, beside this file. It fails when a promise of the guard is broken. `test_matrix.py` asserts
on the same rows.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wsgi_dbguard.lab.contenders import Contender
from wsgi_dbguard.lab.drivers import DRIVERS, Driver
from wsgi_dbguard.lab.fault import Fault
from wsgi_dbguard.lab.matrix import BUSY, LIMIT, Outcome
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.rows import Rows, cells

PAGE = Path(__file__).with_name("MATRIX.md")
COMMAND = ".ci/venv python tests/faults/matrix.py"
HEAD = ("fault", "connection", "driver", "detected by", *Contender, *(f"slowest, {each}" for each in Contender))
INTRODUCTION = f"""# Every fault, every driver

Written by `{COMMAND} --write`; do not edit.

A pool of five connections, three threads with five requests each after the fault. Under each contender: requests that
failed; *in use*: the request that held its connection when the fault struck, which no check can mend; *hung*: no answer
for {LIMIT:g} s, or {BUSY:g} s with the guard and where nothing should fail. Slowest request in seconds. A fault that
strikes an idle pool may cost the guard nothing, but where a note below says so.
"""


def failures(outcome: Outcome) -> str:
    """What went wrong, in a few words."""
    counts = {"in use": outcome.lost, "wrong": outcome.wrong, "hung": outcome.hung}
    return ", ".join([str(outcome.failed), *(f"{count} {word}" for word, count in counts.items() if count)])


def line(trio: Sequence[Outcome]) -> list[str]:
    """One row of the table: the outcomes of the three contenders with one driver."""
    first = trio[0]
    guarded = trio[-1]
    return [
        first.fault.name,
        first.fault.moment,
        first.driver.name,
        guarded.detected or "-",
        *(failures(each) for each in trio),
        *(f"{each.slowest:.2f}" for each in trio),
    ]


def span(counts: Iterable[int], word: str = "") -> str:
    """The smallest and the largest, with a word for what it is; nothing for none of something that has a word."""
    ordered = sorted(counts)
    least, most = ordered[0], ordered[-1]
    if word and not most:
        return ""
    return " ".join(filter(None, [str(most) if least == most else f"{least} to {most}", word]))


def summary(trios: Sequence[Sequence[Outcome]]) -> list[str]:
    """One row for all drivers: from the least to the most that a fault cost any of them."""
    fault = trios[0][0].fault
    detected = dict.fromkeys(word for trio in trios for word in trio[-1].detected.split(", ") if word)
    columns = list(zip(*trios, strict=True))
    return [
        fault.name,
        fault.moment,
        str(len(trios)),
        ", ".join(detected) or "-",
        *(
            ", ".join(
                filter(
                    None,
                    [
                        span(each.failed for each in column),
                        span((each.lost for each in column), "in use"),
                        span((each.wrong for each in column), "wrong"),
                        span((each.hung for each in column), "hung"),
                    ],
                )
            )
            for column in columns
        ),
        *(f"{max(each.slowest for each in column):.2f}" for column in columns),
    ]


def table_of(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class Report:
    """What came of all rows that were played, in the order in which they were."""

    def __init__(self, console: Console) -> None:
        self.trios: list[list[Outcome]] = []
        self.broken: list[str] = []
        self.notes: dict[str, None] = {}
        self.skipped: dict[str, None] = {}
        self._console = console
        self._begun = time.monotonic()

    def play(self, rows: Rows, fault: Fault, driver: Driver) -> None:
        """One fault with one driver: a line of the table, or a reason why there is none."""
        if reason := driver.missing():
            self.skipped[reason] = None
            return
        try:
            row = rows.play(fault, driver.database)
        except ServerMissing as missing:
            self.skipped[f"{fault.title}, {driver.database}: {missing}"] = None
            return
        if fault.note:
            self.notes[f"{fault.name}: {fault.note}"] = None
        trio = [outcome for outcome in row if outcome.driver == driver]
        self.trios.append(trio)
        self.broken += [f"{fault.title}, {driver}: {sentence}" for each in trio for sentence in each.broken()]
        self._console.print(f"{time.monotonic() - self._begun:5.0f} s  {fault.title}, {driver}", highlight=False)

    def summaries(self) -> str:
        """The table of all drivers together."""
        by_fault: dict[str, list[Sequence[Outcome]]] = {}
        for trio in self.trios:
            by_fault.setdefault(trio[0].fault.title, []).append(trio)
        return table_of(["drivers" if each == "driver" else each for each in HEAD], map(summary, by_fault.values()))

    def remarks(self) -> str:
        """The notes and what was skipped, as a list."""
        return "\n".join(f"- {each}" for each in [*self.notes, *(f"Skipped: {reason}." for reason in self.skipped)])


def markdown(report: Report, debian: Report, version: str) -> str:
    """The page: all drivers together, the notes, PostgreSQL's once more on Debian's `version`, each driver."""
    parts = [
        INTRODUCTION.rstrip("\n"),
        report.summaries(),
        report.remarks(),
        f"## On Debian's PostgreSQL {version}",
        debian.summaries() if debian.trios else debian.remarks(),
        "## Driver by driver",
        table_of(HEAD, map(line, report.trios)),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--driver", choices=[driver.name for driver in DRIVERS], default="")
    parser.add_argument("--fault", default="", help="part of a title, such as 'RST'")
    parser.add_argument("--system", action="store_true", help="Debian's PostgreSQL, not the wheel's")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    if options.write and (options.driver or options.fault or options.system):
        parser.error("--write is for all of it")
    logging.getLogger().addHandler(logging.NullHandler())  # what is broken here is broken on purpose
    drivers = [driver for driver in DRIVERS if options.driver in ("", driver.name)]
    chosen = cells(fault=options.fault, driver=options.driver)
    console = Console(stderr=True)
    report, debian, version = Report(console), Report(console), ""
    with Rows(drivers, system=options.system) as rows:
        for fault, driver in chosen:
            report.play(rows, fault, driver)
    if options.write:
        with Rows(drivers, system=True) as rows:
            for fault, driver in chosen:
                if driver.database == "postgresql":
                    debian.play(rows, fault, driver)
            if debian.trios:
                [(version,)] = rows.stage("postgresql").server.query("SHOW server_version")
    table = Table(*HEAD, title="requests failed")
    for trio in [*report.trios, *debian.trios]:
        table.add_row(*line(trio))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    broken = [*report.broken, *(f"Debian's PostgreSQL {version}: {each}" for each in debian.broken)]
    for sentence in [*(f"skipped: {reason}" for reason in report.skipped), *(f"broken: {each}" for each in broken)]:
        print(sentence)
    if options.write:
        PAGE.write_text(markdown(report, debian, version.partition(" ")[0]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
