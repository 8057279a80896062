"""The pools that are watched, and what happens in them: for the exporters.

`watch` has every engine's pool tell each `Recorder` how long it took to get, to open and to use a connection. For that
the pool's ``connect()`` is wrapped, since SQLAlchemy has no event for somebody who begins to wait, and an event is
listened to at checkin. `unwatch` undoes it. SQLite's engines and those of async drivers are not guarded, and so not
watched.

A process tells of the pools that it uses: a master that only forks has nothing to tell of pools that its workers have,
and a child nothing of its parent's.

A connection that nobody closed is given back by the garbage collector, in the middle of anything: of a section that is
locked by this very thread, too. So a `Recorder` must never wait for a lock that is not its own.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic
from typing import Any, Protocol

from sqlalchemy import Engine, event, exc
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection, QueuePool

from wsgi_dbguard import fork, registry, tally
from wsgi_dbguard.guards import address, guard_of, has_server, numbered
from wsgi_dbguard.link import KEY
from wsgi_dbguard.pool import PoolGuard
from wsgi_dbguard.process import here

from .instruments import (
    CREATE_TIME,
    INSTRUMENTS,
    USE_TIME,
    WAIT_TIME,
    Instrument,
    Reading,
    State,
    read_pool,
    read_process,
)  # fmt: skip

__all__ = ["Counts", "Recorder", "look", "names", "read", "readings", "unwatch", "watch"]

Counts = Mapping[tuple[Instrument, tuple[str, ...]], float]
"""By instrument and the values of its `labels`."""


class Recorder(Protocol):
    """An exporter. Neither of the first two may raise or wait: they are called by the application's checkouts."""

    def note(self, instrument: Instrument, pool: str, seconds: float) -> None:
        """It took so long."""

    def changed(self, pool: str | None) -> None:
        """Values of this pool have changed; None: of any, or such as belong to none."""

    def reset(self) -> None:
        """This is a new process, forked from the one that all notes so far are of."""


class _Watched:
    """One engine's pool, and those that `Engine.dispose` makes of it.

    before: the counters of earlier engines that had its name, which are gone. final: with its own, when it is gone.
    """

    def __init__(self, engine: Engine, name: str, before: Counts) -> None:
        self.engine = weakref.ref(engine, self.end)
        self.name = name
        self.before = before
        self.final: Counts | None = None
        self.guard: PoolGuard | None = None  # as soon as it is known to have one
        self._forget()

    def reset(self) -> None:
        """In a forked child."""
        self.before = {}
        if self.final is not None:
            self.final = {}
        self._forget()

    def _forget(self) -> None:
        self.used = False
        self.waiting: set[object] = set()  # a token for each caller that is in connect()
        self.timeouts = 0

    def state(self) -> State | None:
        engine = self.engine()
        if engine is None or self.guard is None or not self.used:
            return None
        return State(engine.pool, self.guard.stats(), len(self.waiting), self.timeouts)

    def end(self, engine: object) -> None:
        """The engine was collected: its counters are for the next one of that name, its gauges are for nobody.

        Not when the interpreter ends: there is no next one, files are not opened any more (`open` is gone by then), and
        gauges go with the process.
        """
        if sys.is_finalizing():
            return
        final = dict(self.before)
        if self.guard is not None and self.used:
            for instrument, labels, value in read_pool(self.name, State(None, self.guard.stats(), 0, self.timeouts)):
                if instrument.kind == "counter":
                    final[instrument, labels] = final.get((instrument, labels), 0) + value
        self.final = final
        _changed(self.name)

    def begin(self) -> object:
        """Somebody wants a connection."""
        if self.guard is None and (engine := self.engine()) is not None:
            self.guard = guard_of(engine)
            if self.guard is not None:
                self.guard.breaker.opened = lambda seconds: _note(CREATE_TIME, self.name, seconds)
        self.used = True
        token = object()
        self.waiting.add(token)
        return token

    def timed(self, pool: Pool) -> Callable[[], PoolProxiedConnection]:
        """The pool's ``connect``, observed."""
        connect = type(pool).connect
        weakly = weakref.ref(pool)

        def observed() -> PoolProxiedConnection:
            pool = weakly()
            assert pool is not None  # whoever calls its method has it
            token = self.begin()
            began = monotonic()
            if _is_exhausted(pool):
                _changed(self.name)  # now: it may be long
            try:
                proxy = connect(pool)
                _note(WAIT_TIME, self.name, monotonic() - began)
                return proxy
            except exc.TimeoutError:
                with _lock:
                    self.timeouts += 1
                raise
            finally:
                self.waiting.discard(token)
                _changed(self.name)

        return observed

    def on_checkin(self, connection: Any, entry: ConnectionPoolEntry) -> None:
        link = entry.info.get(KEY)
        # Those of the parent are given back as well, in the middle of a fork.
        if link is not None and link.pid == os.getpid() and self.guard is not None and not self.guard.shares:
            _note(USE_TIME, self.name, monotonic() - link.used)
        _changed(self.name)

    def on_dispose(self, engine: Engine) -> None:
        engine.pool.connect = self.timed(engine.pool)  # type: ignore[method-assign]


_recorders: list[Recorder] = []
_watched: dict[str, _Watched] = {}  # by name
_dialects: weakref.WeakSet[Dialect] = weakref.WeakSet()  # of those that are watched: an engine and its copies have one
_highest: dict[tuple[Instrument, tuple[str, ...]], float] = {}
_lock = threading.RLock()  # the garbage collector may come here in the middle of a locked section


def watch(recorder: Recorder) -> None:
    """Tell `recorder` what happens in every pool of this process, those that there are and those to come."""
    _recorders.append(recorder)
    registry.on_engine(_attach)


def unwatch(recorder: Recorder) -> None:
    """Tell it no more; with the last one, leave the pools as they were."""
    _recorders.remove(recorder)
    if not _recorders:
        if _attach in registry._listeners:
            registry._listeners.remove(_attach)
        for each in list(_watched.values()):
            _detach(each)
        _watched.clear()
        _dialects.clear()
        _highest.clear()


def readings() -> Iterator[Reading]:
    """The present value of every instrument but the histograms. No counter is less than it was before."""
    yield from map(_not_less, read_process())
    for name in names():
        for (instrument, labels), value in read(name, *look(name)).items():
            yield _not_less((instrument, labels, value))


def names() -> list[str]:
    """Of all pools that there are, or were."""
    return list(_watched)


def look(name: str) -> tuple[State | None, Counts]:
    """The pool of that name, if there is one and this process uses it; and the counters of those that are gone."""
    each = _watched.get(name)
    if each is None:
        return None, {}
    state, final = each.state(), each.final
    return (state, each.before) if final is None else (None, final)


def read(
    name: str, state: State | None, before: Counts, instruments: Iterable[Instrument] = INSTRUMENTS
) -> dict[tuple[Instrument, tuple[str, ...]], float]:
    """The values of what `look` has seen, but for histograms."""
    if state is None:
        return dict(before)
    values = {(each, labels): before.get((each, labels), 0) + value
              for each, labels, value in read_pool(name, state, instruments)}  # fmt: skip
    return values if instruments is not INSTRUMENTS else {**before, **values}


def _not_less(reading: Reading) -> Reading:
    """A connection that is just being closed may be missing from a sum for a moment."""
    instrument, labels, value = reading
    if instrument.kind != "counter":
        return reading
    with _lock:
        value = _highest[instrument, labels] = max(value, _highest.get((instrument, labels), 0.0))
    return instrument, labels, value


def _note(instrument: Instrument, pool: str, seconds: float) -> None:
    for recorder in _recorders:
        recorder.note(instrument, pool, seconds)


def _changed(pool: str | None) -> None:
    if not here[0]:  # not noticed yet, or about to be: nothing may be written in the parent's name
        return
    for recorder in _recorders:
        recorder.changed(pool)


def _tallied(source: object) -> None:
    if source is not None:
        for each in list(_watched.values()):
            if each.guard is not None and (source is each.guard or source is each.guard.breaker):
                _changed(each.name)
                return
    _changed(None)


def _attach(engine: Engine) -> None:
    if not has_server(engine):
        return
    with _lock:
        if engine.dialect in _dialects:
            return
        _dialects.add(engine.dialect)
        name = _name(engine)
        _, before = look(name)
        watched = _watched[name] = _Watched(engine, name, before)
    watched.on_dispose(engine)
    event.listen(engine, "engine_disposed", watched.on_dispose)
    event.listen(engine, "checkin", watched.on_checkin)


def _detach(watched: _Watched) -> None:
    if watched.guard is not None:
        watched.guard.breaker.opened = None
    engine = watched.engine()
    if engine is not None:
        event.remove(engine, "engine_disposed", watched.on_dispose)
        event.remove(engine, "checkin", watched.on_checkin)
        vars(engine.pool).pop("connect", None)


def _is_exhausted(pool: Pool) -> bool:
    """Whether who comes now has to wait for a connection."""
    return isinstance(pool, QueuePool) and not pool.checkedin() and -1 < pool._max_overflow <= pool.overflow()


def _name(engine: Engine) -> str:
    """`address`, which is as the conventions have it; with a number for more of it."""
    return numbered(address(engine), {each.name for each in list(_watched.values()) if each.final is None})


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _highest.clear()
    for each in list(_watched.values()):
        each.reset()
    for recorder in _recorders:
        recorder.reset()


fork.on_fork(_after_fork)
tally.observers.append(_tallied)
