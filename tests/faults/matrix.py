"""Every fault against every driver, as a table: requests failed, and the slowest, without and with the guard.

Each fault is injected into real servers, for all contenders at the same time. Run it with::

    .ci/venv python tests/faults/matrix.py [--driver D] [--fault F] [--write]

`--fault` takes a part of a title. `--write` plays everything and writes MATRIX.md, beside this file. It fails when a
promise of the guard is broken. `test_matrix.py` asserts on the same rows.
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
from wsgi_dbguard.lab.drivers import DRIVERS
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


def markdown(trios: Sequence[Sequence[Outcome]], notes: Iterable[str]) -> str:
    """The page: all drivers together, the notes, each driver."""
    by_fault: dict[str, list[Sequence[Outcome]]] = {}
    for trio in trios:
        by_fault.setdefault(trio[0].fault.title, []).append(trio)
    return "\n".join(
        [
            INTRODUCTION,
            table_of(["drivers" if each == "driver" else each for each in HEAD], map(summary, by_fault.values())),
            "",
            *(f"- {note}" for note in notes),
            "",
            "## Driver by driver",
            "",
            table_of(HEAD, map(line, trios)),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--driver", choices=[driver.name for driver in DRIVERS], default="")
    parser.add_argument("--fault", default="", help="part of a title, such as 'RST'")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    if options.write and (options.driver or options.fault):
        parser.error("--write is for all of it")
    logging.getLogger().addHandler(logging.NullHandler())  # what is broken here is broken on purpose
    chosen = cells(fault=options.fault, driver=options.driver)
    trios: list[list[Outcome]] = []
    broken: list[str] = []
    notes: dict[str, None] = {}
    skipped: dict[str, None] = {}
    console = Console(stderr=True)
    begun = time.monotonic()
    with Rows([driver for driver in DRIVERS if options.driver in ("", driver.name)]) as rows:
        for fault, driver in chosen:
            if reason := driver.missing():
                skipped[reason] = None
                continue
            try:
                row = rows.play(fault, driver.database)
            except ServerMissing as missing:
                skipped[f"{fault.title}, {driver.database}: {missing}"] = None
                continue
            if fault.note:
                notes[f"{fault.name}: {fault.note}"] = None
            trio = [outcome for outcome in row if outcome.driver == driver]
            trios.append(trio)
            broken += [f"{fault.title}, {driver}: {sentence}" for each in trio for sentence in each.broken()]
            console.print(f"{time.monotonic() - begun:5.0f} s  {fault.title}, {driver}", highlight=False)
    table = Table(*HEAD, title="requests failed")
    for trio in trios:
        table.add_row(*line(trio))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for sentence in [*(f"skipped: {reason}" for reason in skipped), *(f"broken: {each}" for each in broken)]:
        print(sentence)
    if options.write:
        PAGE.write_text(markdown(trios, [*notes, *(f"Skipped: {reason}." for reason in skipped)]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
