"""The heart: rounds of beats over all ways, in a table of their own or by reading only, and nothing left at the end.

In each round the connections that are there (kept, pool) are asked first and a fresh one after them, so that whatever
struck them is known to the fresh one: it is either still there, or shows in the server's uptime.

Example::

    with Heart(Target.parse(url), timeout=3.0) as heart:
        heart.run(seconds=60.0)
    verdict(heart.beats)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

from sqlalchemy import Executable, Table, insert, literal, select
from sqlalchemy.exc import DBAPIError

from wsgi_dbguard import failures
from wsgi_dbguard.failures import Failure

from .beats import Beat, Trouble, Way
from .table import make_table
from .target import CannotWatch, Target
from .troubles import trouble_of
from .ways import Fresh, Kept, Pooled
from .worker import Worker

__all__ = ["Heart", "Round"]

Round = Sequence[Beat]

# What drivers say, most of them without a code, of a login, an option, or TLS that will not be taken later either.
_GRACE = 1.0  # seconds beyond the timeout: a beat that was cut tells so itself, unless its driver cannot be cut
_FAREWELL = 10.0  # seconds, at least, in which the table is to be dropped
_PAUSE = 0.25  # seconds between two attempts to drop the table


class Heart:
    """Beats in a ``with`` block; `interval` and `timeout` are in seconds.

    `table` is the name of the table, None when it only reads; `notes` says why, and what else is worth knowing;
    `left_behind` is the table as long as it is there: in the end one that could not be dropped, or was to be kept.
    """

    def __init__(
        self,
        target: Target,
        *,
        interval: float = 1.0,
        timeout: float = 3.0,
        read_only: bool = False,
        keep: bool = False,
    ) -> None:
        self.target = target
        self.interval = interval
        self.timeout = timeout
        self.keep = keep
        self.beats: list[Beat] = []
        self.notes: list[str] = []
        self._table: Table | None = None if read_only else make_table()
        self._to_drop: Table | None = None
        self._stack = ExitStack()

    @property
    def table(self) -> str | None:
        return None if self._table is None else self._table.name

    @property
    def left_behind(self) -> str | None:
        return None if self._to_drop is None else self._to_drop.name

    def __enter__(self) -> Self:
        """Raises CannotWatch when there is nothing to watch: no driver, a refused password, no such database."""
        with ExitStack() as stack:
            self.begun = time.monotonic()
            options: dict[str, Any] = {"timeout": self.timeout, "begun": self.begun}
            self._fresh = Fresh(self.target, **options)
            stack.callback(self._fresh.close)
            kept = Kept(self.target, **options)
            pooled = Pooled(self.target, **options)
            stack.callback(self._clean)
            self._prepare()
            self.workers: dict[Way, Worker] = {}
            for way in (kept, pooled, self._fresh):
                worker = Worker(way, self._statement, patience=self.timeout + _GRACE, begun=self.begun)
                self.workers[way.way] = worker
                stack.callback(worker.stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(
        self,
        *,
        seconds: float,
        stop: threading.Event | None = None,
        tell: Callable[[Round], object] = lambda beats: None,
    ) -> None:
        """Beat until `seconds` have passed or `stop` is set, at least once; `tell` is called after each round."""
        stop = stop or threading.Event()
        began = time.monotonic()
        number = 0
        while True:
            number += 1
            due = time.monotonic() + self.interval
            beats = self._round(number)
            self.beats += beats
            tell(beats)
            now = time.monotonic()
            if max(due, now) >= began + seconds or stop.wait(max(due - now, 0.0)):
                return

    def _round(self, number: int) -> Round:
        held = [self.workers[Way.KEPT], self.workers[Way.POOL]]
        for worker in held:
            worker.begin(number)
        beats = [worker.end() for worker in held]
        fresh = self.workers[Way.FRESH]
        fresh.begin(number)
        return [*beats, fresh.end()]

    def _statement(self, way: Way, number: int) -> Executable:
        if self._table is None:
            return select(literal(number))
        return insert(self._table).values(beat=number, way=way.value)

    # The table

    def _prepare(self) -> None:
        """Connect for the first time, and make the table."""
        opened = False
        deadline = self._fresh.bounded()
        try:
            with deadline, self._fresh.engine.connect() as connection:
                opened = True
                if self._table is not None:
                    self._to_drop = self._table  # now: a failure may come after the deed
                    self._table.create(connection, checkfirst=False)
        except Exception as error:
            if not opened and _is_hopeless(error):
                raise CannotWatch(f"cannot connect: {self.target.line(error)}") from None
            trouble = trouble_of(error, expired=deadline.expired, connecting=not opened, timeout=self.timeout)
            if trouble in (Trouble.ANSWERED, Trouble.READ_ONLY):
                self._to_drop = None
            self._table = None
            why = "no table can be made"
            if not opened:
                why = "no connection can be opened yet"
            elif trouble is Trouble.READ_ONLY:
                why = "the server takes no writes: it is a replica, or read-only"
            self.notes.append(f"{why}, so beats only read ({self.target.line(error)})")

    def _clean(self) -> None:
        """Drop the table, trying for a while where the database is away."""
        table = self._to_drop
        if table is None or self.keep:
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._drop, args=(table, ended), name="watch drop", daemon=True)
        thread.start()
        thread.join(max(self.timeout, _FAREWELL) + self.timeout + _GRACE)
        if ended.is_set():
            self._to_drop = None

    def _drop(self, table: Table, ended: threading.Event) -> None:
        until = time.monotonic() + max(self.timeout, _FAREWELL)
        while not ended.is_set():
            try:
                with self._fresh.bounded(), self._fresh.engine.connect() as connection:
                    table.drop(connection, checkfirst=True)
                ended.set()
            except Exception:  # a driver may raise what is its own, or the system's
                if time.monotonic() >= until:
                    return
                time.sleep(_PAUSE)


def _is_hopeless(error: BaseException) -> bool:
    """Whether waiting does not help: a refused login, a database that is not there, an argument that is none."""
    original = (error.orig or error) if isinstance(error, DBAPIError) else error
    if not isinstance(original, OSError) and failures.classify(error, connecting=True) is not Failure.UNAVAILABLE:
        return True
    return not failures.may_pass(original)
