"""Recycling in figures: every setup of `wsgi_dbguard.lab.setups`, unguarded beside guarded, as a table.

Run by hand, not by pytest; exit code 1 when a guarded server was not clean::

    python tests/servers/recycling.py --database mariadb --only uWSGI

The lines "server alone" are the unguarded server with an application that opens nothing at import: what the server does
by itself to requests, when its workers go.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.recycling import Outcome, recycle
from wsgi_dbguard.lab.setups import SETUPS

COLUMNS = ("Server", "", "Workers", "Requests", "Failed", "Dropped", "Wrong", "Shared", "Import", "Left")
CAPTION = (
    "Workers: spawned after the first ones. Dropped: closed by the server without an answer. Shared: backends that not "
    "exactly one process held. Import: what became of the transaction that the import left open. Left: backends when "
    "the server had ended."
)
# Whether it is guarded, whether its import opens connections, seconds for each step.
KINDS = {"server alone": (False, False, 30.0), "unguarded": (False, True, 3.0), "guarded": (True, True, 60.0)}


def row(name: str, kind: str, outcome: Outcome) -> list[str]:
    load = outcome.load
    imported = "committed" if outcome.committed else "kept" if outcome.kept else "lost"
    figures = (outcome.recycled, load.requests, outcome.failed, outcome.dropped, load.wrong, len(outcome.astray))
    return [name, kind, *(f"{figure:,}" for figure in figures), imported, f"{outcome.left}"]


@click.command()
@click.option("--database", type=click.Choice(["postgresql", "mariadb"]), default="postgresql", show_default=True)
@click.option("--only", default="", help="Setups with this in their names.")
def main(database: str, only: str) -> None:
    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, caption=CAPTION, caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("Server", "", "Import") else "right", no_wrap=True)
    dirty = []
    server = PostgreSQL() if database == "postgresql" else MariaDB()
    with server, tempfile.TemporaryDirectory() as directory, console.status("") as status:
        for name, setup in SETUPS.items():
            if only not in name:
                continue
            for kind, (guarded, opening, patience) in KINDS.items():
                status.update(f"{name}, {kind}")
                outcome = recycle(
                    setup, server, guarded=guarded, opening=opening, patience=patience, directory=Path(directory)
                )
                table.add_row(*row(name, kind, outcome))
                if guarded and not outcome.clean:
                    dirty.append(f"{name}: {outcome.unfinished} {outcome.load.errors}")
    console.print(table)
    for line in dirty:
        console.print(line)
    sys.exit(bool(dirty))


if __name__ == "__main__":
    main()
