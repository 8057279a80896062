"""``wsgi-dbguard lab``: the same bad minute for every way of keeping pooled connections alive, as a report with plots.

For whoever wants to see the alternatives side by side before choosing. What is played is told in
`wsgi_dbguard.lab.timeline`. It needs ``pip install 'wsgi-dbguard[lab]'`` and Linux; it touches no database and no
server but its own, which are private and gone at the end. The HTML file holds everything, also the figures as JSON
(the element ``figures``), and no script::

    $ wsgi-dbguard lab --html report.html
    $ wsgi-dbguard lab --json - --seconds 30 | jq '.contenders[] | {pages, orders}'

Exit codes: 0; 1 if the guard failed a request and that is not explained, answered wrongly, or lost or repeated an
order; 2 if it could not run; 130 after Ctrl-C.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._seconds import Seconds

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["lab"]

STDOUT = Path("-")
NEEDED = ("gunicorn", "psycopg2", "psycopg", "psycopg_pool", "dbutils", "matplotlib")


class _CannotRun(click.ClickException):
    exit_code = 2


def _writable(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Refused before the minute is played, not after it."""
    if path is not None and path != STDOUT:
        place = path if path.exists() else path.parent
        if not path.parent.is_dir() or not os.access(place, os.W_OK):
            raise click.BadParameter(f"{path} cannot be written", context, option)
    return path


@click.command()
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_writable,
    help="Write the report there.",
)
@click.option(
    "--json",
    "figures_to",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    callback=_writable,
    help="Write the figures there; - is stdout.",
)
@click.option(
    "--seconds",
    type=Seconds(12, 600),
    default=60,
    show_default=True,
    help="How long the minute takes; the faults are as much shorter or longer.",
)
@click.option("--only", multiple=True, metavar="CONTENDER", help="Not all of them; may be repeated.")
def lab(html: Path | None, figures_to: Path | None, seconds: float, only: tuple[str, ...]) -> None:
    """Play one bad minute to the guard and to all alternatives, and report what became of each request.

    Exit code 1: the guard failed a request without an explanation; 2: it could not run.
    """
    _check()
    from rich.console import Console

    from wsgi_dbguard.lab.postgres import ServerMissing
    from wsgi_dbguard.lab.report import page
    from wsgi_dbguard.lab.slots import figures_of
    from wsgi_dbguard.lab.timeline import contenders, record

    if unknown := set(only) - set(contenders()):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: it is one of {', '.join(contenders())}")
    console = Console(stderr=True, highlight=False)
    begun = time.monotonic()

    def tell(step: str) -> None:
        console.print(f"{time.monotonic() - begun:5.1f} s  {step}", soft_wrap=True)

    try:
        with tempfile.TemporaryDirectory(prefix="dbguard-lab-") as directory:
            figures = figures_of(record(seconds=seconds, directory=Path(directory), names=only or None, tell=tell))
    except KeyboardInterrupt:
        console.print("interrupted: everything is stopped and removed")
        sys.exit(130)
    except (ServerMissing, FileNotFoundError, RuntimeError, TimeoutError) as error:
        raise _CannotRun(str(error)) from error
    console.print(_table(figures))
    try:
        if figures_to == STDOUT:
            print(json.dumps(figures))
        elif figures_to is not None:
            figures_to.write_text(json.dumps(figures))
        if html is not None:
            html.write_text(page(figures), encoding="utf-8")
    except OSError as error:  # no space left
        raise _CannotRun(str(error)) from error
    sys.exit(_not_well(figures["contenders"].get("guard")))


def _check() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise _CannotRun(f"the lab needs {', '.join(missing)}: pip install 'wsgi-dbguard[lab]'")
    if sys.platform != "linux":
        raise _CannotRun(f"the lab runs on Linux, this is {platform.system()}")


def _not_well(guard: dict[str, Any] | None) -> bool:
    from wsgi_dbguard.lab.slots import UNEXPLAINED

    if guard is None:
        return False
    orders = guard["orders"]
    unexplained = any(failure["why"] == UNEXPLAINED for failure in guard["failures"])
    return unexplained or any((guard["pages"]["wrong"], orders["wrong"], orders["lost"], orders["twice"]))


def _table(figures: dict[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    caption = "Pages and orders: how many failed. Lost: orders that were answered as if done."
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column("Contender", no_wrap=True)
    for title in ("Pages", "Orders", "Lost", "Wrong", "Slowest", "Connects"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, found in figures["contenders"].items():
        pages, orders = found["pages"], found["orders"]
        table.add_row(
            name,
            *(f"{each['failed']:,} of {each['requests']:,}" for each in (pages, orders)),
            f"{orders['lost']:,}",
            f"{pages['wrong'] + orders['wrong']:,}",
            f"{found['slowest']:.1f} s",
            f"{found['opened']:,}",
        )
    return table
