"""Every fault against every driver: what it costs with nothing, with pool_pre_ping and with the guard.

A pool of five connections serves requests of three threads. The fault strikes while they rest, with every connection in
the pool, or with one of them in use by a request of its own; then the threads go on. A request that fails or hangs is
counted for what it was: its connection *in use* when the fault struck, which no check at checkout can mend, or *in the
pool*, which is what the guard is for. What a request may wait is bounded: after `LIMIT` seconds it counts as hung, with
the guard, or where nobody is to fail, after `BUSY`.

Example::

    with Stage(server, "postgresql") as stage:
        for outcome in play(stage, fault_named("FIN, in the pool"), drivers):
            print(outcome.driver, outcome.contender, outcome.failed, outcome.slowest, outcome.broken())
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from wsgi_dbguard import deadline
from wsgi_dbguard.request import Request, current

from .contenders import Contender, Pool
from .drivers import Driver
from .fault import REQUESTS, THREADS, Fault, Moment
from .interrupts import interrupt
from .process import wait_until
from .stage import Stage

__all__ = ["BUSY", "LIMIT", "Outcome", "limit", "play"]

LIMIT = 4.0  # seconds a request may take that nothing looks after; without an answer it would wait for minutes
BUSY = 20.0  # the same for one that must not hang; the settings of the stage allow a fraction, on a machine at rest
READY = 60.0  # seconds for what has to be there before the fault

_tokens = itertools.count(1)


def limit(fault: Fault, contender: Contender) -> float:
    """Seconds after which a request counts as hung."""
    return BUSY if contender is Contender.GUARD or fault.breaks is False else LIMIT


@dataclass
class Outcome:
    """What a fault cost one contender with one driver."""

    fault: Fault
    driver: Driver
    contender: Contender
    requests: int = 0
    failed: int = 0  # though their connection was in the pool when the fault struck, or was opened later
    lost: int = 0  # their connection was in use when the fault struck
    wrong: int = 0  # somebody else's answer
    hung: int = 0
    slowest: float = 0.0  # seconds
    connects: int = 0  # new connections after the fault
    stats: dict[str, Any] = field(default_factory=dict)  # the guard's, since the fault
    errors: list[str] = field(default_factory=list)

    @property
    def detected(self) -> str:
        """How the guard came to know: by poll, by ping, or by the error of the request that was struck."""
        words = {"dead": "poll", "ping": "ping", "read_only": "read-only"}
        found = [word for cause, word in words.items() if self.stats.get("replaced", {}).get(cause)]
        if (self.lost or (self.failed and not found)) and self.stats.get("invalidations"):
            found.append("error")
        return ", ".join(found)

    def broken(self) -> list[str]:
        """The promises that were not kept, as sentences; none for a contender that promises nothing."""
        if self.contender is not Contender.GUARD:
            return []
        promises = [
            (self.wrong == 0, f"{self.wrong} wrong answers"),
            (self.hung == 0, f"{self.hung} requests hung for {limit(self.fault, self.contender):g} s"),
            (self.failed <= self.fault.costs, f"{self.failed} requests failed: {self.errors[:3]}"),
            (
                self.fault.reconnects is None or self.connects <= self.fault.reconnects,
                f"{self.connects} new connections, not {self.fault.reconnects}",
            ),
            (
                self.fault.pings is None or self.stats.get("pings", 0) <= self.fault.pings,
                f"{self.stats.get('pings')} pings, not {self.fault.pings}",
            ),
        ]
        return [sentence for kept, sentence in promises if not kept]


class _Run:
    """The requests of one pool, and what came of them until the time was up."""

    def __init__(self, pool: Pool, outcome: Outcome) -> None:
        self.pool = pool
        self.outcome = outcome
        self.limit = limit(outcome.fault, outcome.contender)
        self.lock = threading.Lock()
        self.running: dict[int, float] = {}  # since when, by thread
        self.over = False
        self.threads: list[threading.Thread] = []

    def start(self, act: Callable[[], object]) -> None:
        thread = threading.Thread(target=act, daemon=True)
        self.threads.append(thread)
        thread.start()

    def request(self, ask: Callable[[str], str], *, in_use: bool = False) -> None:
        """One request, whatever comes of it."""
        token, me = f"token-{next(_tokens)}", threading.get_ident()
        with self.lock:
            self.running[me] = time.monotonic()
        error: Exception | None = None
        answer = token
        try:
            answer = ask(token)
        except Exception as failure:
            error = failure
        with self.lock:
            if self.over:
                return
            begun = self.running.pop(me)
            outcome = self.outcome
            outcome.requests += 1
            outcome.slowest = max(outcome.slowest, time.monotonic() - begun)
            outcome.wrong += answer != token
            if error is not None:
                outcome.errors.append(f"{type(error).__name__}: {error}".splitlines()[0])
                if in_use:
                    outcome.lost += 1
                else:
                    outcome.failed += 1

    def struck(self) -> None:
        """From now on count what the requests that are under way have to wait: the fault may have taken its time."""
        with self.lock:
            self.running = dict.fromkeys(self.running, time.monotonic())

    def requests(self) -> None:
        for _ in range(REQUESTS):
            if not self.over:
                self.request(self.pool.ask)

    def finish(self) -> None:
        """Wait for the threads; a request that takes longer than its limit hangs."""
        while any(thread.is_alive() for thread in self.threads):
            with self.lock:
                now = time.monotonic()
                oldest = min(self.running.values(), default=now)
                if now - oldest > self.limit:
                    break
            for thread in self.threads:
                thread.join(0.02)
        with self.lock:
            self.over = True
            now = time.monotonic()
            self.outcome.hung += len(self.running)
            self.outcome.slowest = max([self.outcome.slowest, *(now - begun for begun in self.running.values())])

    def wake(self) -> None:
        """Wake up the threads that hang, when the fault is over, or the pool could not be closed."""
        self.pool.cut()
        for thread in self.threads:
            thread.join(60.0)


class _Victim:
    """A request that holds a connection at the fault's moment, and goes on after it."""

    def __init__(self, stage: Stage, moment: Moment, run: _Run) -> None:
        self.stage = stage
        self.moment = moment
        self.pool = run.pool
        self.ready = threading.Event()
        self.struck = threading.Event()
        run.start(lambda: run.request(self.ask, in_use=True))

    def ask(self, token: str) -> str:
        with _limited(self.pool), self.pool.engine.connect() as connection:
            self.stage.victims.append(connection.exec_driver_sql(self.stage.dialect.backend).scalar_one())
            connection.exec_driver_sql("SELECT count(*) FROM written")  # InnoDB's transactions begin with a table
            if self.moment is not Moment.TRANSACTION:
                connection.commit()
            self.ready.set()
            if self.moment is Moment.QUERY:
                connection.exec_driver_sql(self.stage.dialect.sleep)
            else:
                self.struck.wait(READY)
            return self.pool.echo(connection, token)


@contextmanager
def _limited(pool: Pool) -> Iterator[None]:
    """A request as `DBGuard` makes it, where the guard has a deadline."""
    if pool.guard is None or pool.guard.config.deadline is None:
        yield
        return
    deadline.watch(pool.engine)
    request = Request({"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
    request.limit = pool.guard.config.deadline
    before = current.set(request)
    try:
        yield
    finally:
        current.reset(before)
        request.end()


@contextmanager
def _victims(stage: Stage, fault: Fault, runs: Sequence[_Run]) -> Iterator[None]:
    """A request in each pool that is at the fault's moment; it goes on at the end of the block."""
    if fault.moment is Moment.POOL:
        yield
        return
    victims = [_Victim(stage, fault.moment, run) for run in runs]
    for victim in victims:
        if not victim.ready.wait(READY):
            raise RuntimeError(f"{fault}: a connection did not get there")
    if fault.moment is Moment.QUERY:
        # One after the other: a deadline may wake the first one before the last one is there.
        missing = set(stage.victims)

        def all_there() -> bool:
            missing.difference_update(stage.asleep())
            return not missing

        wait_until(all_there, timeout=READY, what="queries that sleep")
    try:
        yield
    finally:
        for run in runs:
            run.struck()
        for victim in victims:
            victim.struck.set()


def play(
    stage: Stage, fault: Fault, drivers: Iterable[Driver], contenders: Iterable[Contender] = Contender
) -> list[Outcome]:
    """Let a fault happen to a pool of each driver and contender, all at the same time.

    Raises RuntimeError when a pool does not work even before the fault, TimeoutError when the fault does not happen.
    """
    stage.reset()
    chosen = [driver for driver in drivers if fault.applies(driver)]
    if fault.interrupt:
        return _interrupted(stage, fault, chosen, list(contenders))
    fault.prepare(stage)
    runs: list[_Run] = []
    try:
        _play(stage, fault, chosen, list(contenders), runs)
    finally:
        fault.undo(stage)
        for run in runs:
            run.wake()
        stage.close()
    return [run.outcome for run in runs]


def _play(
    stage: Stage, fault: Fault, drivers: Sequence[Driver], contenders: Sequence[Contender], runs: list[_Run]
) -> None:
    """Fills `runs`, whose threads may still hang then."""
    stage.open(
        drivers,
        contenders,
        arguments=fault.arguments,
        session=fault.session.get(stage.database, ()),
        writes=fault.writes,
        settings=fault.settings,
    )
    for pool in stage.pools:
        pool.ask("before")
    runs += [_Run(pool, Outcome(fault, pool.driver, pool.contender)) for pool in stage.pools]
    with _victims(stage, fault, runs):
        before = [(pool.connects, _counts(pool)) for pool in stage.pools]
        fault.inject(stage)
        time.sleep(fault.idle)
    for run in runs:
        for _ in range(THREADS):
            run.start(run.requests)
    for run, (connects, stats) in zip(runs, before, strict=True):
        run.finish()
        run.outcome.connects = run.pool.connects - connects
        run.outcome.stats = _difference(_counts(run.pool), stats)


def _counts(pool: Pool) -> dict[str, Any]:
    return pool.guard.stats() if pool.guard is not None else {}


def _difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """How much more there is, key by key."""
    more: dict[str, Any] = {}
    for key, value in after.items():
        if isinstance(value, dict):
            more[key] = _difference(value, before.get(key, {}))
        elif isinstance(value, int):
            more[key] = value - before.get(key, 0)
    return more


def _interrupted(
    stage: Stage, fault: Fault, drivers: Sequence[Driver], contenders: Sequence[Contender]
) -> list[Outcome]:
    """The interrupts, which need a process for each cell."""
    pairs = list(itertools.product(drivers, contenders))
    found = interrupt(fault.interrupt, [(driver.url(stage.url), contender) for driver, contender in pairs])
    outcomes = []
    for (driver, contender), counts in zip(pairs, found, strict=True):
        outcome = Outcome(fault, driver, contender, lost=counts.pop("interrupted"))
        for name, value in counts.items():
            setattr(outcome, name, value)
        outcomes.append(outcome)
    return outcomes
