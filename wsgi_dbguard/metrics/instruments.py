"""Which instruments there are, and where their values come from. For the exporters; declared here and nowhere else.

Names, units and kinds of ``db.client.connection.*`` are those of the OpenTelemetry semantic conventions for database
client metrics (https://opentelemetry.io/docs/specs/semconv/database/database-metrics/); ``wsgi_dbguard.*`` are ours.
Counters and gauges are not kept here: `read` asks the guards when somebody wants to know, so a process that has just
been forked has none of its parent's. Histograms are the exception, they are told of each event (`timing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.pool import NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from wsgi_dbguard import tally

__all__ = [
    "BOUNDARIES", "CAUSES", "INSTRUMENTS", "LIVELY", "POOL_NAME",
    "Instrument", "Reading", "State", "checks", "most", "read_pool", "read_process", "retired",
]  # fmt: skip

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"

BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Of the histograms' buckets, seconds: those that the conventions give for ``db.client.operation.duration``."""

CAUSES = (
    "dead", "ping", "condemned", "max_lifetime", "idle_timeout", "read_only", "unread", "deadline", "changed", "forked",
)  # fmt: skip
"""Why a connection was retired, see `PoolGuard.stats`. Each is exported from the beginning, as 0."""

Values = Mapping[tuple[str, ...], float | None]


@dataclass(frozen=True)
class State:
    """What is known of one pool at one moment."""

    pool: Pool | None
    """None: it is gone."""
    stats: Mapping[str, Any]
    pending: int
    """Callers that are in the pool's `connect()`."""
    timeouts: int
    """How many left it with SQLAlchemy's TimeoutError."""

    @property
    def settled(self) -> dict[str, Any]:
        """All but what the `lively` instruments show."""
        settled = {**self.stats, "timeouts": self.timeouts}
        for name in ("connections", "idle", "checkouts"):
            del settled[name]
        return settled


@dataclass(frozen=True, eq=False)
class Instrument:
    """One metric. Values add up over pools and processes, those of "updowncounter" as well."""

    name: str
    kind: Literal["counter", "updowncounter", "histogram"]
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    """Beside the pool's name."""
    of_pool: Callable[[State], Values] | None = None
    """By the values of `attributes`; None is nothing to tell."""
    of_process: Callable[[], Values] | None = None
    lively: bool = False
    """Whether it changes with each checkout or checkin."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All attributes."""
        return self.attributes if self.of_process else (POOL_NAME, *self.attributes)


Reading = tuple[Instrument, tuple[str, ...], float]
"""An instrument, the values of its `labels`, and its value."""


def _idle_max(pool: Pool | None) -> int | None:
    if isinstance(pool, QueuePool | SingletonThreadPool):
        return pool.size() if isinstance(pool, QueuePool) else pool.size
    return 1 if isinstance(pool, StaticPool) else 0 if isinstance(pool, NullPool) else None


def most(pool: Pool | None) -> int | None:
    """How many connections it may have open; None: no limit."""
    if isinstance(pool, QueuePool):
        size, overflow = pool.size(), pool._max_overflow  # there is no public name
        return size + overflow if size > 0 and overflow >= 0 else None  # None: no limit
    return 1 if isinstance(pool, StaticPool) else None


def _count(state: State) -> Values:
    idle = state.stats["idle"]
    return {("idle",): idle, ("used",): state.stats["connections"] - idle}


def checks(state: State) -> Values:
    """By what was asked, and what it turned out to be."""
    stats, replaced = state.stats, state.stats["replaced"]
    pinged_in_vain = replaced.get("ping", 0)
    return {
        # A connection is looked at whenever it is taken, but for the first time.
        ("socket", "alive"): max(0, stats["checkouts"] - stats["connects"]),
        ("socket", "dead"): replaced.get("dead", 0),
        ("ping", "alive"): stats["pings"] - pinged_in_vain,
        ("ping", "dead"): pinged_in_vain,
    }


def retired(state: State) -> Values:
    """By cause, those that were replaced at a checkout and those that were closed while they lay idle."""
    values: dict[tuple[str, ...], float | None] = {(cause,): 0 for cause in CAUSES}
    for counts in (state.stats["replaced"], state.stats["retired_by_cause"]):
        for cause, number in counts.items():
            values[cause,] = (values.get((cause,)) or 0) + number
    return values


def _stat(name: str) -> Callable[[State], Values]:
    return lambda state: {(): int(state.stats[name])}


def _counted(what: str, *kinds: str) -> Callable[[], Values]:
    return lambda: {(kind,) if kind else (): tally.counts[what, kind] for kind in kinds or ("",)}


CREATE_TIME = Instrument(
    "db.client.connection.create_time", "histogram", "s", "The time it took to create a new connection"
)
WAIT_TIME = Instrument(
    "db.client.connection.wait_time", "histogram", "s", "The time it took to obtain an open connection from the pool"
)
USE_TIME = Instrument(
    "db.client.connection.use_time", "histogram", "s", "The time between borrowing a connection and returning it"
)

INSTRUMENTS = (
    Instrument(
        "db.client.connection.count", "updowncounter", "{connection}",
        "The number of connections that are currently in state described by the state attribute",
        (STATE,), _count, lively=True,
    ),
    Instrument(
        "db.client.connection.idle.max", "updowncounter", "{connection}",
        "The maximum number of idle open connections allowed",
        of_pool=lambda state: {(): _idle_max(state.pool)},
    ),
    Instrument(
        "db.client.connection.max", "updowncounter", "{connection}",
        "The maximum number of open connections allowed",
        of_pool=lambda state: {(): most(state.pool)},
    ),
    Instrument(
        "db.client.connection.pending_requests", "updowncounter", "{request}",
        "The number of current pending requests for an open connection",
        of_pool=lambda state: {(): state.pending}, lively=True,
    ),
    Instrument(
        "db.client.connection.timeouts", "counter", "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection from the pool",
        of_pool=lambda state: {(): state.timeouts},
    ),
    CREATE_TIME,
    WAIT_TIME,
    USE_TIME,
    Instrument(
        "wsgi_dbguard.checkouts", "counter", "{checkout}", "Connections that were taken from the pool",
        of_pool=_stat("checkouts"), lively=True,
    ),
    Instrument(
        "wsgi_dbguard.connects", "counter", "{connection}", "Connections that were opened", of_pool=_stat("connects")
    ),
    Instrument(
        "wsgi_dbguard.checks", "counter", "{check}",
        "Checks of a pooled connection when it is taken, by what was asked and what it turned out to be",
        ("wsgi_dbguard.check.tier", "wsgi_dbguard.check.result"), checks, lively=True,
    ),
    Instrument(
        "wsgi_dbguard.retired", "counter", "{connection}", "Connections that were replaced or closed, by cause",
        ("wsgi_dbguard.cause",), retired,
    ),
    Instrument(
        "wsgi_dbguard.restored", "counter", "{connection}",
        "Connections whose settings were put back after a request had changed them", of_pool=_stat("restored"),
    ),
    Instrument(
        "wsgi_dbguard.invalidations", "counter", "{invalidation}",
        "How often one dead connection condemned all older ones of its pool", of_pool=_stat("invalidations"),
    ),
    Instrument(
        "wsgi_dbguard.away", "updowncounter", "{process}",
        "Processes that could not reach the database when they last tried", of_pool=_stat("away"),
    ),
    Instrument(
        "wsgi_dbguard.outages", "counter", "{outage}", "How often a process found the database away",
        of_pool=_stat("outages"),
    ),
    Instrument(
        "wsgi_dbguard.waiting", "updowncounter", "{request}", "Callers that wait for a database that is away",
        of_pool=_stat("waiting"),
    ),
    Instrument(
        "wsgi_dbguard.holds", "counter", "{request}", "Callers that waited for a database that was away",
        of_pool=_stat("held"),
    ),
    Instrument(
        "wsgi_dbguard.refusals", "counter", "{request}",
        "Callers that were told at once that the database is away, or waited in vain", of_pool=_stat("refused"),
    ),
    Instrument(
        "wsgi_dbguard.severed", "counter", "{connection}",
        "Connections of the parent process that were cut off after a fork", of_process=_counted("severed"),
    ),
    Instrument(
        "wsgi_dbguard.leaks", "counter", "{leak}",
        "Requests that left sessions in a transaction, and connections that a request did not give back",
        ("wsgi_dbguard.leak.kind",), of_process=_counted("leaks", "connection", "session"),
    ),
    Instrument(
        "wsgi_dbguard.replays", "counter", "{request}", "Requests that ran a second time, by what came of it",
        ("wsgi_dbguard.replay.outcome",), of_process=_counted("replays", "succeeded", "failed"),
    ),
)  # fmt: skip


LIVELY = tuple(each for each in INSTRUMENTS if each.lively)


def read_pool(name: str, state: State, instruments: Iterable[Instrument] = INSTRUMENTS) -> Iterator[Reading]:
    """The present values of one pool, but for histograms."""
    for instrument in instruments:
        if instrument.of_pool is not None:
            for attributes, value in instrument.of_pool(state).items():
                if value is not None:
                    yield instrument, (name, *attributes), value


def read_process() -> Iterator[Reading]:
    """The present values of what belongs to no pool."""
    for instrument in INSTRUMENTS:
        if instrument.of_process is not None:
            for attributes, value in instrument.of_process().items():
                if value is not None:
                    yield instrument, attributes, value
