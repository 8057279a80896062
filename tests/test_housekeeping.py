"""Idle connections go when their time is up: also in a process that nobody asks, never from under a user's hands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from wsgi_dbguard import GuardConfig, PoolGuard, guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy

from .backends import pid_of, retired

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]


def swept(pool_guard: PoolGuard, count: int) -> None:
    """As `retired`, without the thread, whose next round may be far."""

    def sweep() -> bool:
        pool_guard.sweep()
        return bool(pool_guard.stats()["retired"] == count)

    wait_until(sweep, timeout=60.0, what=f"the end of {count} connections")


@pytest.mark.parametrize("settings", [{"idle_timeout": 0.2}, {"max_lifetime": 0.2}])
@pytest.mark.parametrize("options", [{}, {"pool_use_lifo": True}, {"pool_size": 0}])
def test_in_an_idle_process_all_connections_are_closed_in_time(
    postgres: PostgreSQL,
    driver: str,
    make_engine: MakeEngine,
    fill: Fill,
    complaints: None,
    settings: dict[str, Any],
    options: dict[str, Any],
) -> None:
    engine = make_engine(postgres.url(driver), **options)
    pool_guard = guard(engine, **settings)
    pids = fill(engine, 4)
    retired(pool_guard, 4)
    wait_until(lambda: not set(pids) & set(postgres.backends()), timeout=60.0, what="the end of the backends")
    # The server may know of the last one's end before the thread that closed it has gone on.
    wait_until(lambda: not pool_guard.links(), timeout=60.0, what="the end of the links")
    stats = pool_guard.stats()
    assert (stats["connections"], stats["idle"], stats["connects"]) == (0, 0, 4)
    assert not set(fill(engine, 4)) & set(pids)

    def counts() -> tuple[Any, ...]:
        stats = pool_guard.stats()
        return stats["connects"], stats["replaced"], stats["checkouts"]

    # Those of a connection that is just being closed are missing for a moment.
    wait_until(lambda: counts() == (8, {}, 8), timeout=60.0, what="the counts of eight connections, one checkout each")


def test_connections_are_closed_with_a_goodbye(postgres: PostgreSQL, driver: str, make_engine: MakeEngine) -> None:
    """Servers count and log clients that just went away."""
    with FaultProxy(postgres.host, postgres.port, record=True) as proxy:
        engine = make_engine(postgres.url_through(proxy.host, proxy.port, driver))
        pool_guard = guard(engine, idle_timeout=0.1)
        pid_of(engine)
        retired(pool_guard, 1)
        (connection,) = proxy.history
        wait_until(lambda: connection.closed, timeout=60.0, what="the end of the connection")
        assert connection.sent.endswith(b"X\0\0\0\x04")  # the protocol's Terminate


def test_connections_condemned_or_dead_are_closed_too_when_their_time_is_up(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=600.0)
    pids = fill(engine, 4)
    postgres.terminate(pids[0], pids[1])
    pid_of(engine)  # finds the first one dead
    pool_guard.configure(GuardConfig(idle_timeout=0.1))
    swept(pool_guard, 4)
    wait_until(lambda: not set(pids) & set(postgres.backends()), timeout=60.0, what="the end of the backends")
    assert pool_guard.stats()["connections"] == 0
    assert pool_guard.stats()["replaced"] == {"dead": 1}


def test_connections_in_use_or_detached_are_left_alone(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, complaints: None
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=0.05, max_lifetime=0.05)
    with engine.connect() as used, engine.connect() as detached, engine.connect() as idle:
        detached.detach()
        idle.close()
        retired(pool_guard, 1)
        for _ in range(3):
            pool_guard.sweep()
        for connection in (used, detached):
            assert connection.scalar(text("select 1")) == 1
        assert pool_guard.stats()["retired"] == 1


def test_connections_opened_before_the_guard_are_closed_once_they_were_used(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, complaints: None
) -> None:
    engine = make_engine(postgres.url(driver))
    pid = pid_of(engine)
    pool_guard = guard(engine, idle_timeout=600.0)
    assert pid_of(engine) == pid
    pool_guard.configure(GuardConfig(idle_timeout=0.05))
    swept(pool_guard, 1)


def test_a_short_limit_is_kept_though_another_engine_has_a_long_one(
    postgres: PostgreSQL, driver: str, run_python: Callable[..., str]
) -> None:
    program = """
import sys
from sqlalchemy import create_engine
from wsgi_dbguard import guard, housekeeping
from wsgi_dbguard.lab.process import wait_until

pauses = []
interval = housekeeping._interval

def noted(guards):
    pauses.append(interval(guards))
    return pauses[-1] if len(guards) > 1 else 3600.0  # alone it would pause for half a minute

housekeeping._interval = noted
slow, quick = create_engine(sys.argv[1]), create_engine(sys.argv[1])
guard(slow, idle_timeout=86400.0, max_lifetime=None)
slow.connect().close()
wait_until(lambda: pauses, timeout=60.0, what="the thread's pause")
quick_guard = guard(quick, idle_timeout=0.1)
quick.connect().close()
print(wait_until(lambda: quick_guard.stats()["retired"], timeout=60.0, what="the end of the connection"))
slow.dispose()
quick.dispose()
"""
    assert run_python(program, postgres.url(driver)) == "1\n"


def test_one_thread_serves_all_engines_and_ends_after_the_last_one(
    postgres: PostgreSQL, run_python: Callable[..., str]
) -> None:
    program = """
import gc, sys, threading
from sqlalchemy import create_engine
from wsgi_dbguard import guard
from wsgi_dbguard.lab.process import wait_until

def housekeepers():
    return [each for each in threading.enumerate() if each.name == "wsgi_dbguard.housekeeping"]

none = create_engine(sys.argv[1])
guard(none, idle_timeout=None, max_lifetime=None)
none.connect().close()
print(len(housekeepers()))
engines = [create_engine(sys.argv[1]) for _ in range(3)]
for engine in engines:
    guard(engine, idle_timeout=1.0)
    engine.connect().close()
print(len(housekeepers()), housekeepers()[0].daemon)
for engine in engines:
    engine.dispose()
none.dispose()
del engine, engines, none

def ended():
    gc.collect()
    return not housekeepers()

print(wait_until(ended, timeout=60.0, what="the end of the thread"))
"""
    assert run_python(program, postgres.url()) == "0\n1 True\nTrue\n"


def test_under_gevent_patched_after_the_import_the_event_loop_goes_on(
    postgres: PostgreSQL, run_python: Callable[..., str]
) -> None:
    """gunicorn's order: the hooks import the package, the worker is patched, its application connects."""
    program = f"""
from wsgi_dbguard import guard
from gevent import monkey
monkey.patch_all()
from sqlalchemy import create_engine
from wsgi_dbguard.lab.process import wait_until
engine = create_engine({postgres.url("psycopg2")!r})
pool_guard = guard(engine, idle_timeout=0.2)
engine.connect().close()
print(wait_until(lambda: pool_guard.stats()["retired"], timeout=60.0, what="the end of the connection"))
"""
    assert run_python(program) == "1\n"


def test_a_process_without_threads_to_be_had_still_connects(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("wsgi_dbguard.housekeeping._housekeeper", None)
    engine = make_engine(postgres.url(driver))
    guard(engine)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert pid_of(engine)
