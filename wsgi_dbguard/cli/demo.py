"""``wsgi-dbguard demo``: the same application unguarded beside guarded, under load, while things break.

For whoever wants to see what the guard does, and what it does not do yet, before trusting it with anything. It needs
``pip install 'wsgi-dbguard[demo]'`` and Linux; it touches no database and no server but its own, which are private and
gone at the end. What is run is told in `wsgi_dbguard.lab.scenarios`::

    $ wsgi-dbguard demo
    $ wsgi-dbguard demo --json --seconds 20 | jq '.scenarios[] | {name, failed: .guarded.failed}'

Exit codes: 0; 1 if the guarded side gave a wrong answer; 2 if the demo could not run; 130 after Ctrl-C.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click

from ._seconds import Seconds
from .config import deploy_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from wsgi_dbguard.lab.scenarios import Demo, Scenario, Side, Tell

__all__ = ["demo"]

NEEDED = ("flask", "flask_sqlalchemy", "gunicorn", "psycopg2")

CAPTION = (
    "Backends are terminated in the lull between two bursts: this shows the check at checkout. While the database is "
    "down, guarded requests wait for it (hold=10). The two sides take turns at the load; the number of requests is no "
    "measure of speed."
)


class _CannotRun(click.ClickException):
    """Not 1, which is click's own choice: that means a wrong answer."""

    exit_code = 2


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; progress goes to stderr.")
@click.option(
    "--seconds",
    type=Seconds(10, 600),
    default=30,
    show_default=True,
    help="About how long everything takes.",
)
def demo(as_json: bool, seconds: float) -> None:
    """Break a database under a guarded and an unguarded server, and compare.

    Exit code 1: the guarded side gave a wrong answer; 2: it could not run.
    """
    _check()
    from rich.console import Console

    from wsgi_dbguard.lab.postgres import ServerMissing
    from wsgi_dbguard.lab.scenarios import Demo

    console = Console(stderr=as_json, highlight=False)
    try:
        with (
            Demo(site=deploy_directory(), seconds=seconds) as run,
            _progress(run, console, live=console.is_terminal and not as_json) as tell,
        ):
            run.run(tell)
        took = time.monotonic() - run.begun
    except KeyboardInterrupt:
        console.print("interrupted: everything is stopped and removed")
        sys.exit(130)
    except (ServerMissing, FileNotFoundError, RuntimeError, TimeoutError) as error:
        raise _CannotRun(str(error)) from error
    if as_json:
        click.echo(json.dumps(_report(run, took), indent=2))
    else:
        console.print(_table(run.scenarios, caption=f"{CAPTION} {_versions_line(run, took)}"))
    sys.exit(any(scenario.guarded.wrong for scenario in run.scenarios))


def _check() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise _CannotRun(f"the demo needs {', '.join(missing)}: pip install 'wsgi-dbguard[demo]'")
    if sys.platform != "linux":
        raise _CannotRun(f"the demo runs on Linux, this is {platform.system()}")


@contextmanager
def _progress(run: Demo, console: Console, *, live: bool) -> Iterator[Tell]:
    """What to tell each step: a table that grows below the steps on a terminal, otherwise a line for each."""

    def tell(step: str) -> None:
        console.print(f"{time.monotonic() - run.begun:5.1f} s  {step}", soft_wrap=True)

    if not live:
        yield tell
        return
    from rich.live import Live

    with Live(get_renderable=lambda: _table(run.scenarios), console=console, transient=True):
        yield tell


def _table(scenarios: Sequence[Scenario], caption: str | None = None) -> Table:
    from rich.table import Table

    table = Table(caption=caption, caption_justify="left")
    table.add_column("Scenario", ratio=1)
    table.add_column("Server")
    for title in ("Requests", "Failed", "Wrong answers", "Slowest"):
        table.add_column(title, justify="right")
    for scenario in scenarios:
        pairs = zip(_figures(scenario.unguarded), _figures(scenario.guarded), strict=True)
        # Both sides in one row, so that a name that wraps costs no line more.
        table.add_row(scenario.name, "unguarded\nguarded", *("\n".join(pair) for pair in pairs), end_section=True)
    return table


def _figures(side: Side) -> list[str]:
    if not side.requests:
        return ["", "", "", ""]

    def counted(number: int) -> str:
        return f"[{'red' if number else 'green'}]{number:,}[/]"

    return [f"{side.requests:,}", counted(side.failed), counted(side.wrong), f"{side.slowest:.2f} s"]


def _versions(run: Demo) -> dict[str, str]:
    names = ("wsgi-dbguard", "gunicorn", "sqlalchemy", "flask", "flask-sqlalchemy")
    return {
        **{name: version(name) for name in names},
        "postgresql": run.postgres.version,
        "python": platform.python_version(),
    }


def _versions_line(run: Demo, took: float) -> str:
    shown = _versions(run)
    return f"gunicorn {shown['gunicorn']}, PostgreSQL {shown['postgresql']}, {took:.0f} s."


def _report(run: Demo, took: float) -> dict[str, Any]:
    return {
        "scenarios": [scenario.as_dict() for scenario in run.scenarios],
        "seconds": round(took, 1),
        "versions": _versions(run),
        "note": CAPTION,
    }
