"""``wsgi-dbguard watch``: a heartbeat of a database, and at the end a verdict: server, network, or client (pool).

For the hour in which requests fail and nobody knows whose fault it is. What is done is told in `wsgi_dbguard.watch`::

    $ wsgi-dbguard watch postgresql+psycopg2://app@db.example/app
    $ DATABASE_URL=mysql+pymysql://… wsgi-dbguard watch --seconds 600 --read-only
    $ wsgi-dbguard watch "$DATABASE_URL" --json | tail -1 | jq .fault

Exit codes: 0 no fault; 1 a fault; 2 could not watch; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP: with the
verdict, and with the table dropped, in each case. A second Ctrl-C waits for nothing, and tells the table that is left.
141 if nobody reads the output any more (``| head``).
"""

from __future__ import annotations

import _thread
import errno
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ._seconds import Seconds

if TYPE_CHECKING:
    from wsgi_dbguard.watch.heart import Heart, Round
    from wsgi_dbguard.watch.verdict import Verdict

__all__ = ["watch"]

_SHOW_CURSOR = b"\x1b[?25h"  # the live view hides it


class _CannotWatch(click.ClickException):
    """Not 1, which is click's own choice: that means a fault."""

    exit_code = 2


@click.command()
@click.argument("url", envvar="DATABASE_URL")
@click.option(
    "--seconds",
    type=Seconds(1, 86400),
    default=60,
    show_default=True,
    help="For how long; Ctrl-C ends it earlier, with the verdict.",
)
@click.option("--interval", type=Seconds(0.1, 3600), default=1, show_default=True, help="Seconds from beat to beat.")
@click.option(
    "--timeout",
    type=Seconds(2, 300),
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
    # What the guard and SQLAlchemy's pool have to say is in the beats; on stderr it would tear the view apart.
    for name in ("wsgi_dbguard", "sqlalchemy"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    signals = _Signals()
    try:
        with signals:
            found = _watch(signals, url, seconds, as_json, interval=interval, timeout=timeout,
                           read_only=read_only, keep=keep)  # fmt: skip
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # nobody reads any more, the terminal is gone
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter will try once more
        sys.exit(128 + (signals.received or [signal.SIGPIPE])[0])
    sys.exit(128 + signals.received[0] if signals.received else int(found.fault != "none"))


def _watch(signals: _Signals, url: str, seconds: float, as_json: bool, **settings: Any) -> Verdict:
    from wsgi_dbguard.watch import CannotWatch, Heart, Target, verdict

    try:
        signals.heart = heart = Heart(Target.parse(url), **settings)
        with heart:
            for note in _beginning(heart):
                click.echo(note, err=True)
            with _telling(heart, as_json=as_json) as tell:
                heart.run(seconds=seconds, stop=signals.stop, tell=tell)
            if signal.SIGINT in signals.received:
                click.echo("ending (Ctrl-C once more: at once)", err=True)
    except CannotWatch as problem:
        raise _CannotWatch(str(problem)) from None
    found = verdict(heart.beats)
    _tell_verdict(heart, found, as_json=as_json)
    return found


class _Signals:
    """In a ``with`` block: they end the watch after the beat that is on its way, a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.received: list[int] = []
        self.heart: Heart | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            chosen = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else it is to outlive its terminal: nohup
                chosen.append(signal.SIGHUP)
            self._before = {each: signal.signal(each, self._on_signal) for each in chosen}
        return self

    def __exit__(self, *exception: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        # Not of the others: a terminal that is closed sends SIGHUP twice.
        if number == signal.SIGINT and number in self.received:
            self._end()
        self.received.append(number)
        # By another thread: this one may be in the middle of the event's wait(), and hold its lock.
        _thread.start_new_thread(self.stop.set, ())

    def _end(self) -> None:
        left = None if self.heart is None else self.heart.left_behind
        told = "" if left is None else f"; the table {left} may be left: DROP TABLE {left};"
        # Past Python's streams, which may be in the middle of a write.
        os.write(2, f"ended at once{told}\n".encode())
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        os._exit(128 + signal.SIGINT)


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
    if not _has_screen():
        yield lambda beats: click.echo(view.line(beats, clock=f"{datetime.now():%H:%M:%S}"))
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)

    def shown() -> Any:
        return view.screen(heart.beats, title=heart.target.shown, width=console.width)

    with Live(get_renderable=shown, console=console, auto_refresh=False) as live:
        yield lambda beats: live.refresh()


def _has_screen() -> bool:
    """Whether the output is a terminal that can go up a line and has the chart's characters."""
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return False
    try:
        "┏█…".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


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
