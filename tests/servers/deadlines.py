"""Deadlines in figures, as a table: a query of two minutes behind ``deadline=1``, with every kind of worker and driver.

Run by hand, not by pytest; exit code 1 when an answer came later than `LATEST`, was none of the guard's, or left
something wrong behind::

    python tests/servers/deadlines.py --database mariadb
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsgi_dbguard.lab.deadlines import DEADLINE, SERVERS, Outcome, overrun
from wsgi_dbguard.lab.drivers import DRIVERS
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

LATEST = 1.5  # seconds
CAPTION = (
    f"deadline={DEADLINE:g}. Ended: seconds from the answer until the database had nothing left of the query. Next: "
    "whether the requests that followed on that pool had their answers."
)


def good(outcome: Outcome) -> bool:
    return (outcome.status, outcome.kind, outcome.right) == (503, "unavailable", True) and outcome.seconds <= LATEST


@click.command()
@click.option("--database", type=click.Choice(["postgresql", "mariadb"]), default="postgresql", show_default=True)
@click.option("--only", default="", help="Servers with this in their names.")
def main(database: str, only: str) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table("Server", "Driver", "Answer", box=SIMPLE_HEAD, caption=CAPTION, caption_justify="left")
    for column in ("After", "Ended", "Next"):
        table.add_column(column, justify="right")
    outcomes = []
    with (
        PostgreSQL() if database == "postgresql" else MariaDB() as server,
        tempfile.TemporaryDirectory() as place,
        console.status("") as status,
    ):
        for name, start in SERVERS.items():
            for driver in DRIVERS:
                if driver.database != database or only not in name or driver.missing():
                    continue
                status.update(f"{name}, {driver}")
                directory = Path(place) / f"{name} {driver}"
                directory.mkdir()
                outcome = overrun(start, driver, server, directory=directory)
                outcomes.append(outcome)
                table.add_row(
                    name, str(driver), f"{outcome.status} {outcome.kind}",
                    f"{outcome.seconds:.2f} s", f"{outcome.ended:.2f} s", "right" if outcome.right else "wrong",
                )  # fmt: skip
    console.print(table)
    sys.exit(not all(map(good, outcomes)))


if __name__ == "__main__":
    main()
