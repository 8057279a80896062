"""Outages in figures, as a table: five restarts and five SIGKILLs under load, then a database that is down for 30 s.

Run by hand, not by pytest; exit code 1 when a guarded request failed in the restarts, or when, while the database was
down, a guarded process tried it more than once a second or more than a tenth of the requests ran again::

    python tests/servers/outages.py --database mariadb
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wsgi_dbguard.lab.contenders import Contender
from wsgi_dbguard.lab.down import PROCESSES, down
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.restarts import HOLD, restarts

DRIVERS = {"postgresql": "psycopg2", "mariadb": "pymysql"}


def _table(caption: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column != "" else "left", no_wrap=True)
    return table


@click.command()
@click.option("--database", type=click.Choice(list(DRIVERS)), default="postgresql", show_default=True)
@click.option("--restarts", "count", type=click.IntRange(1), default=5, show_default=True, help="Of each kind.")
@click.option("--seconds", type=click.FloatRange(1.0), default=30.0, show_default=True, help="That it is down.")
def main(database: str, count: int, seconds: float) -> None:
    console = Console(highlight=False)
    driver = DRIVERS[database]
    with PostgreSQL() if database == "postgresql" else MariaDB() as server, tempfile.TemporaryDirectory() as place:
        with console.status("restarts under load"):
            results = restarts(server, driver, fast=count, kills=count, directory=Path(place))
        caption = f"{count} restarts, {count} SIGKILLs of {server.name} {server.version}, 100 requests/s, hold={HOLD:g}"
        table = _table(caption, "", "Requests", "Failed", "Wrong", "Slowest")
        for contender, load in results.items():
            table.add_row(
                str(contender), f"{load.requests:,}", f"{load.failed}", f"{load.wrong}", f"{load.slowest:.2f} s"
            )
        console.print(table)
        with console.status("the database is down"):
            told = down(server, driver, seconds=seconds, directory=Path(place))
    caption = (
        f"Down for {seconds:g} s, 50 clients, 100 requests/s, hold=0. Tries: per process and second; back: to 200."
    )
    table = _table(caption, "", "Requests", "p50", "p99", "Slowest", "Tries", "Replays", "Back")
    for contender, each in told.items():
        load = each.answers
        milliseconds = [f"{1000 * value:.0f} ms" for value in (load.percentile(50), load.percentile(99), load.slowest)]
        tries = f"{each.attempts / PROCESSES / seconds:.2f}"
        table.add_row(
            str(contender), f"{load.requests:,}", *milliseconds, tries, f"{each.replays}", f"{each.back:.2f} s"
        )
    console.print(table)
    restarted, away = results[Contender.GUARD], told[Contender.GUARD]
    hammered = away.attempts > PROCESSES * seconds or away.replays > 0.1 * away.answers.requests
    sys.exit(bool(restarted.failed or restarted.wrong or hammered))


if __name__ == "__main__":
    main()
