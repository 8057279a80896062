"""Is the database away? A circuit breaker around the opening of connections: asked once, not by everybody.

When a connection cannot be opened because the server is down, starting, full or refuses us (`Failure.UNAVAILABLE`), and
not at a second attempt either, it is away. From then on one caller in each process tries again now and then (a probe;
see `_pause`); all the others are told at once (`DatabaseUnavailable`), or wait for it where `hold` says so. Connections
that are in the pool are not concerned.

Waiting is for outages that are over soon: a restart, a failover. Who comes while the outage is younger than `hold`
waits for at most `hold` seconds, in the order of coming; in an older one nobody begins to wait any more, so that an
outage that lasts does not fill the server with waiting requests. There is no thread: the first in the queue sends the
probe. When it succeeds it wakes two others, each of which wakes two more when it is connected: nobody waits for a
timer, and the server does not meet all of them at once. Who waits keeps its place in the pool; when it gives up, the
next one in the pool's own queue has it, see `places`.

It works around the pool's creator, so that it is right for engines with ``creator=`` and with listeners to
``do_connect`` as well: both run again for each attempt.
"""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from . import events, failures, places, registry, tally
from .config import GuardConfig
from .errors import DatabaseUnavailable
from .failures import Failure
from .request import current

if TYPE_CHECKING:
    from .pool import PoolGuard

__all__ = ["Breaker", "guard_of"]

logger = logging.getLogger(__name__)

_GUARD = "wsgi_dbguard"  # by which a creator of ours names its guard
_QUICK = 1.0  # seconds
_LEASE = 5.0  # seconds that a probe may take before another one is sent: its server may have died in the handshake


def guard_of(pool: Pool | None) -> PoolGuard | None:
    """The guard that looks after `pool`, or after the one that it was made of by `Engine.dispose`."""
    # Not by getattr(): a creator may be anything that can be called, and answer to any name.
    known = getattr(getattr(pool, "_creator", None), "__dict__", {}).get(_GUARD)
    return None if known is None else known()


class _Waiter:
    """One caller in the queue. Made when it begins to wait: under gevent its event is a greenlet's."""

    __slots__ = ("go", "wake")

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.go = False  # it was released, and is not in the queue any more


class Breaker:
    """What one process knows of whether one pool's database can be reached. `name` is the pool's, for the log."""

    def __init__(self, name: str, config: GuardConfig) -> None:
        self.name = name
        self.config = config
        self.opened: Callable[[float], object] | None = None  # told how many seconds it took to open a connection
        self._dialect: Callable[[], Dialect | None] = lambda: None  # of the engine whose connections it opens
        self._waiters: deque[_Waiter] = deque()
        self.reset()

    def reset(self) -> None:
        """As in a process that has not tried yet, such as after a fork."""
        self._lock = threading.Lock()  # nothing under it waits, or calls what may
        self._since: float | None = None  # when it went away, `time.monotonic()` seconds
        self._error: BaseException | None = None  # what the last attempt met
        self._probing: float | None = None  # when the probe that is on its way was sent
        self._next_probe = 0.0
        self._reached_at = float("-inf")
        self._failures = 0  # in a row
        if self._waiters:
            self._waiters = deque()
        self.outages = 0
        self.refused = 0  # callers that were told at once, or waited in vain
        self.held = 0  # callers that waited

    @property
    def away(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._since is not None

    @property
    def away_for(self) -> float | None:
        """Seconds since it went away; None: it is not."""
        since = self._since
        return None if since is None else monotonic() - since

    @property
    def lets_in(self) -> bool:
        """Whether a caller that does not wait would try to connect now, and not just be told that it is away."""
        return self._since is None or (not self._waiters and self._probe_is_due(monotonic()))

    @property
    def waiting(self) -> int:
        """How many callers wait for the database now."""
        return len(self._waiters)

    def install(self, engine: Engine, guard: PoolGuard) -> None:
        """Have its pool, and those that `Engine.dispose` makes of it, open their connections by way of this.

        By that they are also known to be `guard`'s, see `guard_of`.
        """
        # SQLAlchemy has no public hook around the opening of a connection, only before and after it.
        self._dialect = weakref.ref(engine.dialect)
        engine.pool._creator = connect = self._around(engine.pool._invoke_creator, guard.begin_opening)
        vars(connect)[_GUARD] = weakref.ref(guard)

    def _around(
        self, create: Callable[[ConnectionPoolEntry], Any], opened: Callable[[Any, ConnectionPoolEntry], object]
    ) -> Callable[..., Any]:
        # The very signature by which SQLAlchemy knows a creator that wants its record.
        def connect(connection_record: Any = None) -> Any:
            places.pass_on(connection_record)
            connection = self.connect(lambda: create(connection_record))
            if connection_record is not None:
                opened(connection, connection_record)
            return connection

        connect.__wrapped__ = create  # type: ignore[attr-defined]
        return connect

    def connect(self, create: Callable[[], Any]) -> Any:
        """The connection that `create` opens, perhaps at a later attempt.

        Raises:
            DatabaseUnavailable: (an OperationalError) if the database is away, and this caller is not to try it, or
                has waited for as long as `hold` allows.
            Exception: what `create` raises.
        """
        patience: float | None = None  # seconds that are left to wait
        again = retried = False
        entered = monotonic()
        while True:
            # Those who wait are let go by others who were: one of these must not wait again.
            if self._since is not None or (self._waiters and not retried):
                patience = self._patience() if patience is None else patience
                patience = self._admit(patience, first=again)
            began = monotonic()  # of the attempt, not of the waiting for it
            try:
                connection = create()
            except Exception as error:
                # Who refuses a password has been reached. It may be the password of this one tenant, or user.
                if failures.classify(error, connecting=True) is not Failure.UNAVAILABLE or not (
                    failures.may_pass(error)
                ):
                    self._reached()
                    raise
                if self._since is None and not retried and _may_be_chance(error, monotonic() - began):
                    retried = True
                    continue
                patience = self._patience() if patience is None else patience
                if began < self._reached_at:  # since then somebody else got through
                    if not retried:
                        retried = True
                        continue
                    if patience <= 0:
                        raise
                self._failed(error)
                if patience <= 0 or self._is_old(entered):
                    raise
                again, retried = True, False
            except BaseException:
                self._interrupted()
                raise
            else:
                if self.opened is not None:
                    self.opened(monotonic() - began)
                self._reached()
                return connection

    # What the callers meet

    def _patience(self) -> float:
        """For how many seconds the present caller may wait, if it has to."""
        request = current.get()
        if request is None:
            return self.config.hold
        if request.stand_in and self._dialect() in registry.standbys:
            return 0.0  # it is a replica, and the primary takes its place
        return self.config.hold - request.held

    def _admit(self, patience: float, *, first: bool) -> float:
        """Return when the caller may try to connect; how much of its patience, in seconds, is left then.

        `first`: it has tried already, so it goes to the front of the queue.
        """
        began = monotonic()
        with self._lock:
            if self._since is None and not self._waiters:
                return patience
            if not self._waiters and self._probe_is_due(began):
                self._probing = began
                return patience
            # In an outage that is older than that, who has not begun to wait does not begin.
            waiter = None if patience <= 0 or (not first and self._is_old(began)) else _Waiter()
            if waiter is None:
                if self._since is None:
                    return patience  # it is back: who cannot wait for a turn need not
            elif first:
                self._waiters.appendleft(waiter)
            else:
                self.held += 1
                self._waiters.append(waiter)
        if waiter is None:
            raise self._refuse()
        tally.changed(self)  # now: it may be long
        try:
            self._wait(waiter, began + patience)
        finally:
            waited = monotonic() - began
            request = current.get()
            if request is not None:
                request.held += waited
        return patience - waited

    def _wait(self, waiter: _Waiter, until: float) -> None:
        """Return when it is the turn of `waiter`, or when `until` has come and the database is back.

        Raises:
            DatabaseUnavailable: if `until` has come and it is not.
        """
        while True:
            with self._lock:
                now = monotonic()
                if waiter.go:
                    return
                is_first = self._waiters[0] is waiter
                probe = is_first and self._probe_is_due(now)
                if probe or now >= until:
                    self._probing = now if probe else self._probing
                    self._waiters.remove(waiter)
                    self._wake_first()
                    in_vain = not probe and self._since is not None
                    break
                pause = until - now
                if is_first and self._since is not None:
                    due = self._next_probe if self._probing is None else self._probing + _LEASE
                    pause = min(pause, max(0.0, due - now))
                waiter.wake.clear()
            try:
                waiter.wake.wait(pause)
            except BaseException:
                self._leave(waiter)
                raise
        if in_vain:
            raise self._refuse()

    def _leave(self, waiter: _Waiter) -> None:
        """An interrupt took `waiter` away: what it was given is for the next one."""
        with self._lock:
            if not waiter.go:
                self._waiters.remove(waiter)
                self._wake_first()
        if waiter.go:
            self._release(1)

    def _probe_is_due(self, now: float) -> bool:
        free = self._probing is None or now - self._probing >= _LEASE
        return self._since is not None and free and now >= self._next_probe

    def _is_old(self, now: float) -> bool:
        return self._since is not None and now - self._since >= self.config.hold

    def _refuse(self) -> DatabaseUnavailable:
        """The error for a caller that is told at once, or has waited in vain."""
        with self._lock:
            self.refused += 1
        since, error = self._since, self._error
        unavailable = DatabaseUnavailable(None, None, error or ConnectionError("no connection could be opened"))
        unavailable.add_detail(f"{self.name} has been away for {monotonic() - (since or monotonic()):.1f} s")
        request = current.get()
        if request is not None:  # it comes by no event
            request.database_failed(Failure.UNAVAILABLE, committing=False, replica=self._dialect() in registry.standbys)
        return unavailable

    # What the attempts tell

    def _failed(self, error: Exception) -> None:
        now = monotonic()
        with self._lock:
            news = self._since is None
            if news:
                self._since = now
                self.outages += 1
            self._probing = None
            self._next_probe = now + self._pause()
            self._error = _without_frames(error)
            self._wake_first()
        if news:
            logger.error("%s: process %d: the database is away: %s", self.name, getpid(), error)
            events.note("the database is away", self.name, bad=True)

    def _pause(self) -> float:
        """Seconds until the next probe: an eighth of `retry_after` at first, as a restart may be over by then, and
        twice as much after each failure up to `retry_after` itself; up to half less by chance, so that the processes do
        not probe in step. In thirty seconds that makes some 23 probes with the default."""
        factor = min(1.0, 2.0**self._failures / 8)
        self._failures += 1
        return self.config.retry_after * factor * random.uniform(0.5, 1.0)

    def _reached(self) -> None:
        """The server was reached, though perhaps it did not like what it was asked for."""
        self._reached_at = monotonic()
        if self._since is None and not self._waiters:
            return
        with self._lock:
            since, self._since = self._since, None
            self._probing = None
            self._failures = 0
            self._error = None
            waiting = len(self._waiters)
        if since is not None:
            seconds = monotonic() - since
            logger.warning(
                "%s: process %d: the database is back after %.1f s, %d waiting", self.name, getpid(), seconds, waiting
            )
            events.note(f"the database is back after {seconds:.1f} s", self.name)
        self._release(2)

    def _interrupted(self) -> None:
        with self._lock:
            self._probing = None
            self._wake_first()
            away = self._since is not None
        if not away:
            self._release(1)

    def _release(self, count: int) -> None:
        with self._lock:
            for _ in range(min(count, len(self._waiters))):
                waiter = self._waiters.popleft()
                waiter.go = True
                waiter.wake.set()

    def _wake_first(self) -> None:
        if self._waiters:
            self._waiters[0].wake.set()


def _may_be_chance(error: Exception, seconds: float) -> bool:
    """Whether an attempt that failed after `seconds` says little of the next one, such as one that was reset half-way.

    Nobody listens where it was refused; and one that took long is not made twice.
    """
    return seconds < _QUICK and "refused" not in str(error).lower()


def _without_frames(error: Exception) -> BaseException:
    """One like `error`, without its traceback: that would keep what the caller's frames hold."""
    try:
        return type(error)(*error.args)
    except Exception:  # a constructor of another shape
        return ConnectionError(str(error))
