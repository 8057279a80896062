"""``wsgi-dbguard watch``: a heartbeat of a database, and at the end a verdict: server, network, or client (pool).

For the hour in which requests fail and nobody knows whose fault it is. What is done is told in `wsgi_dbguard.watch`::

    $ wsgi-dbguard watch postgresql+psycopg2://app@db.example/app
    $ DATABASE_URL=mysql+pymysql://… wsgi-dbguard watch --seconds 600 --read-only
    $ wsgi-dbguard watch "$DATABASE_URL" --json | tail -1 | jq .fault

Exit codes: 0 no fault; 1 a fault; 2 could not watch; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP: with the
verdict, and with the table dropped, in each case.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wsgi_dbguard.watch.heart import Heart, Round
    from wsgi_dbguard.watch.verdict import Verdict

__all__ = ["watch"]


class _CannotWatch(click.ClickException):
    """Not 1, which is click's own choice: that means a fault."""

    exit_code = 2


@click.command()
@click.argument("url", envvar="DATABASE_URL")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86400),
    default=60,
    show_default=True,
    help="For how long; Ctrl-C ends it earlier, with the verdict.",
)
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1, show_default=True, help="Seconds from beat to beat."
)
@click.option(
    "--timeout",
    type=click.FloatRange(2, 300),
    default=3,
    show_default=True,
    help="Seconds that a beat may take before it counts as failed.",
)
@click.option("--read-only", is_flag=True, help="SELECT instead of writing rows into a table.")
@click.option("--keep", is_flag=True, help="Leave the table behind.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each beat, and one for the verdict.")
def watch(
    url: str, seconds: float, interval: float, timeout: float, read_only: bool, keep: bool, as_json: bool
) -> None:
    """Tell a server fault from a network fault and from a client (pool) fault.

    URL is SQLAlchemy's, of PostgreSQL, MySQL or MariaDB, or the environment variable DATABASE_URL, which other users of
    this host cannot read. Each second it gets a row over a new connection, over one that is kept open, and through a
    guarded pool. The rows are in a table of their own, which is dropped at the end.

    Exit code 0: no fault; 1: a fault; 2: could not watch.
    """
    from wsgi_dbguard.watch import CannotWatch, Heart, Target, verdict

    # What the guard and SQLAlchemy's pool have to say is in the beats; on stderr it would tear the view apart.
    for name in ("wsgi_dbguard", "sqlalchemy"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        with _stopping() as (stop, ended_by):
            heart = Heart(Target.parse(url), interval=interval, timeout=timeout, read_only=read_only, keep=keep)
            with heart:
                for note in _beginning(heart):
                    click.echo(note, err=True)
                with _telling(heart, as_json=as_json) as tell:
                    heart.run(seconds=seconds, stop=stop, tell=tell)
            found = verdict(heart.beats)
            _tell_verdict(heart, found, as_json=as_json)
    except CannotWatch as problem:
        raise _CannotWatch(str(problem)) from None
    sys.exit(128 + ended_by[0] if ended_by else int(found.fault != "none"))


@contextmanager
def _stopping() -> Iterator[tuple[threading.Event, list[int]]]:
    """Signals end the watch after the beat that is on its way; which one came first."""
    stop = threading.Event()
    received: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        received.append(number)
        stop.set()

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.signal(each, on_signal) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop, received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _beginning(heart: Heart) -> Iterator[str]:
    yield f"watching {heart.target.shown}"
    yield from (f"note: {note}" for note in heart.notes)
    if heart.table is not None:
        yield f"rows go into the table {heart.table}"


@contextmanager
def _telling(heart: Heart, *, as_json: bool) -> Iterator[Callable[[Round], object]]:
    from wsgi_dbguard.watch import view

    if as_json:
        yield lambda beats: click.echo(json.dumps(_as_dict(beats)))
        return
    if not sys.stdout.isatty():
        yield lambda beats: click.echo(view.line(beats, clock=f"{datetime.now():%H:%M:%S}"))
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)

    def shown() -> Any:
        return view.screen(heart.beats, title=heart.target.shown, width=console.width)

    with Live(get_renderable=shown, console=console, auto_refresh=False) as live:
        yield lambda beats: live.refresh()


def _as_dict(beats: Round) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "beat": beats[-1].number,
        **{beat.way.value: beat.as_dict() for beat in beats},
    }


def _tell_verdict(heart: Heart, found: Verdict, *, as_json: bool) -> None:
    from wsgi_dbguard.watch import Way, view

    if as_json:
        told = {
            "fault": found.fault,
            "verdict": found.headline,
            "evidence": found.evidence,
            "ways": {way.value: view.figures(heart.beats, way) for way in Way},
            "notes": heart.notes,
            "table_left": heart.left_behind,
        }
        click.echo(json.dumps(told))
    else:
        click.echo(view.verdict_text(found))
    if heart.left_behind is not None:
        kept = "was kept" if heart.keep else "could not be dropped"
        click.echo(f"the table {heart.left_behind} {kept}: DROP TABLE {heart.left_behind};", err=True)
