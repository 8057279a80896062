"""The ledger in figures: what clients were told, by how many rows of theirs are in the database.

Run by hand, not by pytest; exit code 1 when a row was lost or doubled::

    python tests/servers/ledger.py --database mariadb --requests 5000
"""

from __future__ import annotations

import logging
import sys

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsgi_dbguard.lab.ledger import RIGHT, ledger
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

DRIVERS = {"postgresql": "psycopg2", "mariadb": "pymysql"}


@click.command()
@click.option("--database", type=click.Choice(list(DRIVERS)), default="postgresql", show_default=True)
@click.option("--requests", type=click.IntRange(1), default=5000, show_default=True)
def main(database: str, requests: int) -> None:
    console = Console(highlight=False)
    logging.disable(logging.ERROR)  # each failure is logged with its traceback
    with PostgreSQL() if database == "postgresql" else MariaDB() as server, console.status("posting"):
        outcome = ledger(server, DRIVERS[database], requests=requests)
        caption = (
            f"{server.name} {server.version}: {outcome.found.total():,} POSTs, {outcome.struck.total():,} faults of "
            f"{len(outcome.struck)} kinds, {outcome.again:,} requests ran a second time"
        )
    table = Table("Told", box=SIMPLE_HEAD, caption=caption, caption_justify="left")
    for column in ("Rows", "Requests", ""):
        table.add_column(column, justify="right")
    for (told, rows), number in sorted(outcome.found.items()):
        table.add_row(told, f"{rows}", f"{number:,}", "" if (told, rows) in RIGHT else "wrong")
    console.print(table)
    sys.exit(bool(outcome.wrong))


if __name__ == "__main__":
    main()
