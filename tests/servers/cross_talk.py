"""Cross-talk in figures: every setup of `wsgi_dbguard.lab.cross_talk`, unguarded beside guarded, as a table.

Run by hand, not by pytest; exit code 1 when a guarded server was not clean::

    python tests/servers/cross_talk.py --requests 10000

The unguarded servers get at most 1,000 requests and 10 seconds: their workers may hang.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsgi_dbguard.lab.cross_talk import SETUPS, Outcome, cross_talk
from wsgi_dbguard.lab.postgres import PostgreSQL

CAPTION = (
    "Import: what became of the transaction that the import left open. Left: backends when the server had ended. "
    "gunicorn runs with --preload."
)
COLUMNS = ("Server", "", "Requests", "Failed", "Wrong", "Slowest", "Import", "Left")


def row(outcome: Outcome) -> list[str]:
    load = outcome.load
    return [
        outcome.setup.name,
        "guarded" if outcome.guarded else "unguarded",
        f"{load.requests:,}",
        f"{load.failed:,}",
        f"{load.wrong:,}",
        f"{load.slowest:.2f} s",
        "committed" if outcome.committed else "open" if outcome.kept else "lost",
        f"{outcome.left}",
    ]


@click.command()
@click.option("--requests", type=click.IntRange(1), default=1000, show_default=True, help="For each guarded server.")
def main(requests: int) -> None:
    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, caption=CAPTION, caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("Server", "", "Import") else "right", no_wrap=True)
    outcomes = []
    with PostgreSQL() as postgres, tempfile.TemporaryDirectory() as directory, console.status("") as status:
        for setup in SETUPS:
            for guarded in (False, True):
                status.update(f"{setup.name}, {'guarded' if guarded else 'unguarded'}")
                outcome = cross_talk(
                    setup,
                    guarded=guarded,
                    requests=requests if guarded else min(requests, 1000),
                    seconds=300.0 if guarded else 10.0,
                    postgres=postgres,
                    directory=Path(directory),
                )
                table.add_row(*row(outcome))
                outcomes.append(outcome)
    console.print(table)
    sys.exit(any(outcome.guarded and not outcome.clean for outcome in outcomes))


if __name__ == "__main__":
    main()
