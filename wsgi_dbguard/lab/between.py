"""The faults of what is between a pool and its server: the network, firewalls, poolers and load balancers.

A part of `wsgi_dbguard.lab.faults`, which has all of them. A row whose network or program is not to be had on this
machine raises ServerMissing when it is played.

Example::

    with Stage(server, "postgresql") as stage:
        stage.go_by(stage.link)
        stage.open(drivers)
        stage.link.drop()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .contenders import SIZE
from .drivers import Database, Driver
from .fault import BOTH, POSTGRESQL, THREADS, Act, Fault, Moment
from .haproxy import HAProxy
from .pgbouncer import PgBouncer
from .process import wait_until
from .server import PrivateServer
from .stage import Stage, Way

__all__ = ["BETWEEN"]

# The network, as far as a proxy can make it


def _network(name: str) -> Act:
    def inject(stage: Stage) -> None:
        getattr(stage.proxy, name)()
        stage.wait_for_end()

    return inject


def _forget(stage: Stage) -> None:
    try:
        stage.proxy.forget()
    except PermissionError:  # then it swallows what is sent, but acknowledges it
        stage.proxy.blackhole()
        stage.go_by(stage.detour)


def _drop(stage: Stage) -> None:
    stage.link.drop()
    stage.go_by(stage.detour)  # that new connections get through: the fault is about those that there are


def _drop_until_keepalive(stage: Stage) -> None:
    _drop(stage)
    guarded = [pool for pool in stage.pools if pool.guard is not None and pool.known]
    wait_until(lambda: all(pool.ended >= SIZE for pool in guarded), timeout=60.0, what="keepalive", interval=0.02)


def _by_link(stage: Stage) -> None:
    stage.go_by(stage.link)


NETWORK = [
    Fault("RST", _network("reset")),
    Fault("RST", _network("reset"), moment=Moment.QUERY),
    Fault("FIN", _network("fin")),
    Fault("FIN", _network("fin"), moment=Moment.QUERY),
    Fault("half-close", _network("half_close")),
    Fault("half-close", _network("half_close"), moment=Moment.QUERY),
    Fault(
        "NAT forgot the connections",
        _forget,
        idle=0.3,
        settings={"ping_after": 0.2},
        undo=Stage.reset,
    ),
]

_KEEPALIVE = {"keepalive": (1, 1, 1)}  # seconds, seconds, probes: dead after two
SILENCE = [
    Fault(
        "silent drop, found by a ping",
        _drop,
        prepare=_by_link,
        undo=Stage.reset,
        idle=0.3,
        settings={"ping_after": 0.2},
    ),
    Fault(
        "silent drop, found by keepalive",
        _drop_until_keepalive,
        prepare=_by_link,
        undo=Stage.reset,
        settings=_KEEPALIVE,
    ),
    Fault(
        "silent drop, a moment ago",
        _drop,
        prepare=_by_link,
        undo=Stage.reset,
        costs=THREADS,
        note="too early for a ping or for keepalive: the first statement of each thread fails after `user_timeout`.",
    ),
    # What is sent and not acknowledged is user_timeout's to end, an answer that does not come keepalive's.
    *(
        Fault(
            "silent drop",
            _drop,
            moment=moment,
            prepare=_by_link,
            undo=Stage.reset,
            settings={**_KEEPALIVE, "ping_after": 0.0},
        )
        for moment in (Moment.BETWEEN, Moment.QUERY)
    ),
]


# What stands between the pool and the server


def _behind(way: Callable[[Stage], Way]) -> Act:
    return lambda stage: stage.go_by(way(stage))


def _restart_behind(stage: Stage) -> None:
    stage.on_each("SELECT 1")  # before its first query a client of PgBouncer has no backend to lose
    stage.server.restart()
    stage.wait_for_end()


def _restart_way(way: Callable[[Stage], PrivateServer]) -> Act:
    def inject(stage: Stage) -> None:
        way(stage).restart()
        stage.wait_for_end()

    return inject


def _transaction(stage: Stage) -> PgBouncer:
    return stage.pooler("transaction")


def _session(stage: Stage) -> PgBouncer:
    return stage.pooler("session")


def _balancer(stage: Stage) -> HAProxy:
    return stage.balancer


def _unprepared(driver: Driver) -> Mapping[str, Any]:
    """In transaction mode a prepared statement is gone with the backend that prepared it."""
    return {"prepare_threshold": None} if driver.name == "psycopg" else {}


def _works_behind(way: object) -> Callable[[Driver], bool]:
    """pg8000 prepares and executes in two turns, for which transaction mode gives it two backends."""
    return lambda driver: way is not _transaction or driver.name != "pg8000"


_WAYS: list[tuple[str, tuple[Database, ...], Callable[[Stage], PrivateServer]]] = [
    ("PgBouncer (transaction)", POSTGRESQL, _transaction),
    ("PgBouncer (session)", POSTGRESQL, _session),
    ("HAProxy", BOTH, _balancer),
]

RESTARTS = [
    *(
        Fault(
            f"{name} restarted",
            _restart_way(way),
            databases,
            prepare=_behind(way),
            undo=Stage.reset,
            arguments=_unprepared,
            applies=_works_behind(way),
        )
        for name, databases, way in _WAYS
    ),
    *(
        Fault(
            f"server restarted behind {name}",
            (lambda stage: stage.server.restart()) if way is _transaction else _restart_behind,
            databases,
            prepare=_behind(way),
            undo=Stage.reset,
            arguments=_unprepared,
            applies=_works_behind(way),
            breaks=way is not _transaction,
            reconnects=0 if way is _transaction else None,
            note="it keeps the clients, and has new backends for them." if way is _transaction else "",
        )
        for name, databases, way in _WAYS
    ),
]

BETWEEN = [*NETWORK, *SILENCE, *RESTARTS]
