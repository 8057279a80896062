"""Recycling in figures: every setup of `wsgi_dbguard.lab.setups`, unguarded beside guarded, as a table.

Run by hand, not by pytest; exit code 1 when a guarded server was not clean::

    python tests/servers/recycling.py --database mariadb --only uWSGI
    python tests/servers/recycling.py --recycles 50

The lines "server alone" are the unguarded server with an application that opens nothing at import: what the server does
by itself to requests, when its workers go. With `--recycles` guarded servers only, and of these the ones whose workers
are replaced, or come and go: until so many have been, and then no backend may be there that no living worker holds.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.recycling import SOME, Outcome, Running, Setup, recycle
from wsgi_dbguard.lab.setups import RECYCLING, RELOADING, SETUPS

COLUMNS = ("Server", "", "Workers", "Requests", "Failed", "Dropped", "Wrong", "Shared", "Import", "Left")
CAPTION = (
    "Workers: spawned after the first ones. Dropped: closed by the server without an answer. Shared: backends that not "
    "exactly one process held. Import: what became of the transaction that the import left open. Left: backends when "
    "the server had ended."
)
# Whether it is guarded, whether its import opens connections, seconds for each step.
KINDS = {"server alone": (False, False, 30.0), "unguarded": (False, True, 3.0), "guarded": (True, True, 60.0)}
# What a server says when it can be told the same once more, by a part of the setup's name.
READY = {"USR2": "Master has been promoted", "chain reload": "chain reloading complete"}


def row(name: str, kind: str, outcome: Outcome) -> list[str]:
    load = outcome.load
    imported = "committed" if outcome.committed else "kept" if outcome.kept else "lost"
    figures = (outcome.recycled, load.requests, outcome.failed, outcome.dropped, load.wrong, len(outcome.astray))
    return [name, kind, *(f"{figure:,}" for figure in figures), imported, f"{outcome.left}"]


def replacing() -> dict[str, Setup]:
    """The setups whose workers are replaced, each of gunicorn's with preload and without."""
    setups = {**RECYCLING, **RELOADING}
    for name, setup in list(setups.items()):
        options = tuple(option for option in setup.options if option != "--preload")
        setups.setdefault(name.replace(", preload", ""), replace(setup, options=options, preloaded=False))
    return setups


def said(running: Running, word: str, times: int) -> bool:
    return running.server.child.output().count(word) >= times


def often(name: str, setup: Setup, times: int) -> Setup:
    """The same setup, whose act is repeated until so many workers were spawned; `times` repetitions at the most."""
    word = next((word for part, word in READY.items() if part in name), "")

    def act(running: Running) -> None:
        begun = len(running.spawned())
        for number in range(1, times + 1):
            setup.act(running)
            if len(running.spawned()) >= begun + times:
                return
            if word:
                running.wait(partial(said, running, word, number), repr(word))
            running.answered(SOME)

    # A line for each request would make a log of which every look at it reads all.
    quiet = ("--disable-logging",) if setup.server == "uWSGI" else ()
    return replace(setup, act=act, options=(*setup.options, *quiet))


@click.command()
@click.option("--database", type=click.Choice(["postgresql", "mariadb"]), default="postgresql", show_default=True)
@click.option("--only", default="", help="Setups with this in their names.")
@click.option("--recycles", type=click.IntRange(1), help="Go on until so many workers were replaced; guarded only.")
def main(database: str, only: str, recycles: int | None) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, caption=CAPTION, caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("Server", "", "Import") else "right", no_wrap=True)
    setups, kinds = SETUPS, KINDS
    if recycles is not None:
        setups = {name: often(name, setup, recycles) for name, setup in replacing().items()}
        kinds = {"guarded": (True, True, 120.0)}
    dirty = []
    server = PostgreSQL() if database == "postgresql" else MariaDB()
    with server, tempfile.TemporaryDirectory() as directory, console.status("") as status:
        for name, setup in setups.items():
            if only not in name:
                continue
            for kind, (guarded, opening, patience) in kinds.items():
                status.update(f"{name}, {kind}")
                outcome = recycle(
                    setup, server, guarded=guarded, opening=opening, patience=patience, directory=Path(directory)
                )
                table.add_row(*row(name, kind, outcome))
                if guarded and not outcome.clean:
                    dirty.append(f"{name}: {outcome.unfinished} {outcome.astray or ''} {outcome.load.errors}")
    console.print(table)
    for line in dirty:
        console.print(line)
    sys.exit(bool(dirty))


if __name__ == "__main__":
    main()
