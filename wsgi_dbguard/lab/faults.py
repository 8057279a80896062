"""The faults of the matrix: what can happen to a pooled connection, made to happen for real.

Each is declared once, as a `Fault`: to which databases it happens, at which moment of a connection's life, how it is
made, how it is undone, and what has to come of it. `wsgi_dbguard.lab.matrix` plays them; nothing here measures.

Example::

    with Stage(server, "postgresql") as stage:
        fault = fault_named("FIN")
        stage.open(drivers)
        fault.inject(stage)
        ...
        fault.undo(stage)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from unittest import mock

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .between import BETWEEN
from .contenders import SIZE
from .drivers import Database
from .fault import MARIADB, POSTGRESQL, REQUESTS, THREADS, Fault, Moment, nothing
from .interrupts import KINDS
from .process import wait_until
from .stage import PASSWORD, USER, Server, Stage

__all__ = ["FAULTS", "fault_named"]

# Backends


def _terminate(stage: Stage) -> None:
    if stage.victims:
        stage.server.terminate(*stage.victims)
        stage.wait_for_end(1)
    else:
        stage.server.terminate(*stage.backends())
        stage.wait_for_end()


def _restart(stage: Stage) -> None:
    stage.server.restart()
    stage.wait_for_end(_struck(stage))


def _crash(stage: Stage) -> None:
    stage.server.kill()
    stage.server.start()
    stage.wait_for_end(_struck(stage))


def _struck(stage: Stage) -> int:
    return 1 if stage.victims else SIZE


def _pause(stage: Stage) -> None:
    stage.server.pause()
    stage.later(0.7, stage.server.resume)


def _stop(stage: Stage) -> None:
    stage.server.pause()


def _go_on(stage: Stage) -> None:
    stage.server.resume()
    if stage.victims:  # their queries go on, though nobody waits for them any more
        stage.server.terminate(*stage.victims)


_STOPPED = {"ping_after": 0.0, "connect_timeout": 2.0}
BACKENDS = [
    *(Fault("backend killed", _terminate, moment=moment) for moment in Moment),
    Fault("server restarted", _restart),
    Fault("server restarted", _restart, moment=Moment.TRANSACTION),
    Fault("server killed and restarted", _crash),
    Fault("server killed and restarted", _crash, moment=Moment.QUERY),
    Fault("server stopped for 0.7 s", _pause, breaks=False, reconnects=0),
    Fault(
        "server stopped for 0.7 s, pings",
        _pause,
        breaks=False,
        settings={"ping_after": 0.0},
        note="each connection is asked and none answers within `ping_timeout`: new ones are opened, and wait.",
    ),
    Fault(
        "server stopped",
        _stop,
        undo=_go_on,
        settings=_STOPPED,
        costs=REQUESTS * THREADS,
        note="no request can succeed; what matters is that each is told so. `ping_timeout` (0.5 s) bounds the use of"
        " the connection that was in the pool, `connect_timeout` (2 s) the opening of another one; then the database"
        " is known to be away. A connection that was used within `ping_after` (0 here) is not asked, so that what its"
        " query meets is the next row.",
    ),
    Fault(
        "server stopped, deadline",
        _stop,
        moment=Moment.QUERY,
        undo=_go_on,
        settings={**_STOPPED, "deadline": 2.0},
        costs=REQUESTS * THREADS,
        note="the kernel of a stopped server acknowledges what it is sent, so only `deadline` (2 s, and then"
        " `ping_timeout`) bounds the query, in a request under `DBGuard`. Without it nothing does.",
    ),
]


# Timeouts of the server


def _idle_session(stage: Stage) -> None:
    stage.on_each("SET idle_session_timeout = '500ms'")
    stage.wait_for_end()


def _wait_timeout(stage: Stage) -> None:
    stage.on_each("SET SESSION wait_timeout = 2")
    stage.wait_for_end()


def _global_interactive(stage: Stage) -> None:
    stage.server.query("SET GLOBAL interactive_timeout = 8")


TIMEOUTS = [
    Fault("idle_session_timeout", _idle_session, POSTGRESQL),
    Fault(
        "idle_in_transaction_session_timeout",
        lambda stage: stage.wait_for_end(1),
        POSTGRESQL,
        Moment.TRANSACTION,
        session={"postgresql": ("SET idle_in_transaction_session_timeout = '3s'",)},
    ),
    Fault("wait_timeout", _wait_timeout, MARIADB),
    Fault(
        "interactive_timeout",
        lambda stage: stage.wait_for_end(),
        MARIADB,
        prepare=_global_interactive,
        undo=lambda stage: stage.server.query("SET GLOBAL interactive_timeout = 28800"),
        arguments=lambda driver: driver.interactive,
        applies=lambda driver: bool(driver.interactive),
    ),
    Fault(
        "idle_transaction_timeout",
        lambda stage: stage.wait_for_end(1),
        MARIADB,
        Moment.TRANSACTION,
        session={"mariadb": ("SET SESSION idle_transaction_timeout = 3",)},
    ),
]


# What arrives on a healthy connection


def _notify(stage: Stage) -> None:
    stage.server.query("NOTIFY matrix, 'news'")
    stage.wait_for_news()


_PATIENT = {"ping_timeout": 20.0}  # seconds: the servers are well, however busy the machine
NEWS = [
    Fault(
        "notification pending",
        _notify,
        POSTGRESQL,
        breaks=False,
        reconnects=0,
        pings=SIZE,
        settings=_PATIENT,
        session={"postgresql": ("LISTEN matrix",)},
    ),
    Fault(
        # A backend that listens to something else still tells that it looked, when asked to trace that.
        "notice pending",
        _notify,
        POSTGRESQL,
        breaks=False,
        reconnects=0,
        pings=SIZE,
        settings=_PATIENT,
        session={"postgresql": ("LISTEN quiet", "SET trace_notify = on", "SET client_min_messages = debug1")},
    ),
]


# The wall clock


def _clock(seconds: float) -> AbstractContextManager[object]:
    """Everybody in this process who asks for the time of day gets it wrong by `seconds`."""
    real = time.time

    def stepped() -> float:
        return real() + seconds

    return mock.patch("time.time", stepped)


def _back(stage: Stage) -> None:
    stage.while_playing(_clock(-3600.0))
    _terminate(stage)


def _forward(stage: Stage) -> None:
    stage.while_playing(_clock(3600.0))
    _terminate(stage)


def _corrected(stage: Stage) -> None:
    """The clock is an hour ahead when the pool finds its connections dead, and is set right afterwards."""
    with _clock(3600.0):
        _terminate(stage)
        for pool in stage.pools:
            for _ in range(THREADS):
                with suppress(DBAPIError):
                    pool.ask("token")


CLOCK = [
    Fault("clock set back, backend killed", _back, reconnects=SIZE),
    Fault("clock set forward, backend killed", _forward, reconnects=SIZE),
    Fault("clock an hour ahead, then right", _corrected, breaks=False, reconnects=SIZE),
]

# Who may connect, and who may write


def _all_and_one(stage: Stage) -> None:
    """Every pool has all its connections out and wants one more, which the server refuses."""
    for pool in stage.pools:
        with ExitStack() as stack:
            for _ in range(SIZE):
                stack.enter_context(pool.engine.connect())
            try:
                stack.enter_context(pool.engine.connect())
            except DBAPIError:
                continue
            raise RuntimeError(f"{pool} was given one more connection")


def _full(stage: Stage) -> None:
    # MariaDB has no limit of one user's that counts connections which were there before it.
    stage.server.query(FULL[stage.database].format(limit=len(stage.backends())))
    _all_and_one(stage)


FULL: Mapping[Database, str] = {
    "postgresql": f"ALTER ROLE {USER} CONNECTION LIMIT {{limit}}",
    "mariadb": "SET GLOBAL max_connections = {limit}",
}
PASSWORDS: Mapping[Database, str] = {
    "postgresql": f"ALTER ROLE {USER} PASSWORD '{{password}}'",
    "mariadb": f"ALTER USER {USER}@'%' IDENTIFIED BY '{{password}}'",
}


def _free(stage: Stage) -> None:
    stage.server.query(FULL[stage.database].format(limit=-1 if stage.database == "postgresql" else 200))


def _set_hba(stage: Stage, text: str) -> None:
    """Replace pg_hba.conf, by SQL: whose file it is and where it lies is the server's business."""
    [(path,)] = stage.server.query("SHOW hba_file")
    stage.server.query(f"COPY (SELECT unnest(%s)) TO '{path}'", text.splitlines())
    stage.server.query("SELECT pg_reload_conf()")


def _require_passwords(stage: Stage) -> None:
    if stage.database == "postgresql":
        [(text,)] = stage.server.query("SELECT pg_read_file(current_setting('hba_file'))")
        stage.while_playing(_after(lambda: _set_hba(stage, text)))
        _set_hba(stage, f"host all {USER} all scram-sha-256\n{text}")


def _after(act: Callable[[], object]) -> ExitStack:
    stack = ExitStack()
    stack.callback(act)
    return stack


def _rotate(stage: Stage) -> None:
    stage.server.query(PASSWORDS[stage.database].format(password="second"))
    _all_and_one(stage)


def _rotate_back(stage: Stage) -> None:
    stage.server.query(PASSWORDS[stage.database].format(password=PASSWORD))


READ_ONLY: Mapping[Database, tuple[str, ...]] = {
    "postgresql": ("ALTER SYSTEM SET default_transaction_read_only = {on}", "SELECT pg_reload_conf()"),
    "mariadb": ("SET GLOBAL read_only = {on}",),
}


def _read_only(server: Server, database: Database, on: str) -> None:
    for statement in READ_ONLY[database]:
        server.query(statement.format(on=on))


def _demote(stage: Stage) -> None:
    _read_only(stage.server, stage.database, "on")
    if stage.database == "postgresql":  # every backend reads the configuration when it gets to it

        def demoted(connection: Connection) -> bool:
            return bool(connection.exec_driver_sql("SHOW default_transaction_read_only").scalar_one() == "on")

        for pool in stage.pools:
            pool.with_all(lambda connection: wait_until(lambda: demoted(connection), timeout=60.0, what="the demotion"))


def _promote(stage: Stage) -> None:
    _read_only(stage.server, stage.database, "off")


def _fail_over(stage: Stage) -> None:
    """The primary goes on as a replica, and the name leads to the new primary."""
    stage.go_by(stage.spare)
    _demote(stage)


def _write_in_read_only_transactions(stage: Stage) -> None:
    for pool in stage.pools:
        for _ in range(3):
            try:
                pool.write_read_only()
            except DBAPIError:
                continue
            raise RuntimeError(f"{pool} wrote in a read-only transaction")


ACCESS = [
    Fault("too many connections", _full, undo=_free, breaks=False, reconnects=0),
    Fault("password rotated", _rotate, prepare=_require_passwords, undo=_rotate_back, breaks=False, reconnects=0),
    Fault(
        "primary demoted",
        _fail_over,
        undo=_promote,
        settings=_PATIENT,
        writes=True,
        reconnects=SIZE,
        costs=THREADS,
        note="the first write of each thread is on its way when the first error tells of the failover.",
    ),
    Fault(
        "read-only for good",
        _demote,
        undo=_promote,
        settings=_PATIENT,
        writes=True,
        reconnects=2 * SIZE,
        costs=REQUESTS * THREADS,
        note="no write can succeed; what matters is that the pool is not replaced with each of them.",
    ),
    Fault(
        "READ ONLY transactions",
        _write_in_read_only_transactions,
        breaks=False,
        reconnects=0,
        settings=_PATIENT,
        writes=True,
    ),
]

# The application itself

_UNINTERRUPTED = "drivers in C block the hub: the timeout comes when the query is over."
INTERRUPTS = [
    Fault(
        kind,
        nothing,
        moment=Moment.QUERY,
        breaks=None,
        interrupt=kind,
        note=_UNINTERRUPTED if kind == "gevent.Timeout" else "",
    )
    for kind in KINDS
]

FAULTS = [*BACKENDS, *TIMEOUTS, *BETWEEN, *NEWS, *CLOCK, *ACCESS, *INTERRUPTS]


def fault_named(title: str) -> Fault:
    """The fault of that title. Raises KeyError."""
    return {fault.title: fault for fault in FAULTS}[title]
