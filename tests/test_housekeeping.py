"""Idle connections go when their time is up: also in a process that nobody asks, never from under a user's hands."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, Engine, event, exc, text
from sqlalchemy.pool import Pool, base

from wsgi_dbguard import GuardConfig, PoolGuard, guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]
PID = text("select pg_backend_pid()")


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What was logged as a warning or worse: nothing, in the whole test."""
    caplog.set_level(logging.WARNING)
    yield
    assert [record.getMessage() for record in caplog.get_records("call")] == []


def pid_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(PID) or 0


def retired(pool_guard: PoolGuard, count: int) -> None:
    wait_until(lambda: pool_guard.stats()["retired"] == count, timeout=60.0, what=f"the end of {count} connections")


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
    stats = pool_guard.stats()
    assert (stats["connections"], stats["idle"], stats["connects"]) == (0, 0, 4)
    assert not set(fill(engine, 4)) & set(pids)
    stats = pool_guard.stats()
    assert (stats["connects"], stats["replaced"], stats["checkouts"]) == (8, {}, 8)


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
    time.sleep(0.2)
    pool_guard.sweep()
    retired(pool_guard, 4)
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
    time.sleep(0.1)
    pool_guard.sweep()
    assert pool_guard.stats()["retired"] == 1


def test_a_short_limit_is_kept_though_another_engine_has_a_long_one(
    postgres: PostgreSQL, driver: str, run_python: Callable[..., str]
) -> None:
    program = """
import sys, time
from sqlalchemy import create_engine
from wsgi_dbguard import guard
slow, quick = create_engine(sys.argv[1]), create_engine(sys.argv[1])
guard(slow, idle_timeout=86400.0, max_lifetime=None)
slow.connect().close()
time.sleep(0.2)  # the thread pauses by now, for half a minute
quick_guard = guard(quick, idle_timeout=0.1)
quick.connect().close()
end = time.monotonic() + 60.0
while not quick_guard.stats()["retired"] and time.monotonic() < end:
    time.sleep(0.01)
print(quick_guard.stats()["retired"])
slow.dispose()
quick.dispose()
"""
    assert run_python(program, postgres.url(driver)) == "1\n"


def test_one_thread_serves_all_engines_and_ends_after_the_last_one(
    postgres: PostgreSQL, run_python: Callable[..., str]
) -> None:
    program = """
import gc, sys, threading, time
from sqlalchemy import create_engine
from wsgi_dbguard import guard

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
end = time.monotonic() + 60.0
while housekeepers() and time.monotonic() < end:
    gc.collect()
    time.sleep(0.05)
print(len(housekeepers()))
"""
    assert run_python(program, postgres.url()) == "0\n1 True\n0\n"


def test_under_gevent_patched_after_the_import_the_event_loop_goes_on(
    postgres: PostgreSQL, run_python: Callable[..., str]
) -> None:
    """gunicorn's order: the hooks import the package, the worker is patched, its application connects."""
    program = f"""
from wsgi_dbguard import guard
from gevent import monkey
monkey.patch_all()
import gevent
from sqlalchemy import create_engine
engine = create_engine({postgres.url("psycopg2")!r})
pool_guard = guard(engine, idle_timeout=0.2)
engine.connect().close()
for _ in range(5000):
    gevent.sleep(0.01)
    if pool_guard.stats()["retired"]:
        break
print(pool_guard.stats()["retired"])
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


# Races


@pytest.mark.parametrize("moment", ["before the pool looks", "after the pool looked"])
def test_a_connection_that_is_retired_in_the_middle_of_its_checkout_is_replaced(
    postgres: PostgreSQL,
    driver: str,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    complaints: None,
    moment: str,
) -> None:
    """The pool has taken the entry from its queue, nobody can know of it yet: here housekeeping comes, each time."""
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=0.001)
    get_connection = base._ConnectionRecord.get_connection

    def interrupted(entry: Any) -> Any:
        time.sleep(0.005)
        if moment == "before the pool looks":
            pool_guard.sweep()
        connection = get_connection(entry)
        if moment == "after the pool looked":
            pool_guard.sweep()
        return connection

    pid_of(engine)
    monkeypatch.setattr(base._ConnectionRecord, "get_connection", interrupted)
    pids = [pid_of(engine) for _ in range(20)]
    assert len(set(pids)) == 20
    assert pool_guard.stats()["connections"] <= 1


def test_a_connection_on_its_way_to_its_first_checkout_is_not_idle(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, complaints: None
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=0.001, max_lifetime=0.001)

    @event.listens_for(engine, "connect")
    def housekeeping_comes(*_: Any) -> None:
        time.sleep(0.005)
        pool_guard.sweep()

    with engine.connect() as connection:  # once it is back, its time is up
        assert connection.scalar(PID)
        assert pool_guard.stats()["retired"] == 0


def test_a_checkout_that_is_a_moment_earlier_keeps_its_connection(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, complaints: None
) -> None:
    """Housekeeping comes while the checkout's listeners run: the connection is in use already."""
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=0.001)

    @event.listens_for(engine, "checkout")
    def housekeeping_comes(*_: Any) -> None:
        time.sleep(0.005)
        pool_guard.sweep()

    for _ in range(19):
        pid_of(engine)
    with engine.connect():  # once it is back, its time is up as well
        stats = pool_guard.stats()
        assert stats["retired"] + sum(stats["replaced"].values()) == 19


def test_a_connection_that_is_taken_between_housekeepings_look_and_its_grip_is_left_alone(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, complaints: None
) -> None:
    """The checkout began before the time was up, and has marked the connection as its own by now."""
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=600.0)
    pid = pid_of(engine)
    ahead = [0.0]
    taken: list[Connection] = []
    overdue = PoolGuard._overdue

    def taking(self: PoolGuard, link: Any, now: float) -> str | None:
        cause = overdue(self, link, now)
        if cause and not taken:
            ahead[0] = 0.0
            taken.append(engine.connect())
        return cause

    monkeypatch.setattr("wsgi_dbguard.pool.monotonic", lambda: time.monotonic() + ahead[0])
    monkeypatch.setattr(PoolGuard, "_overdue", taking)
    ahead[0] = 601.0
    pool_guard.sweep()
    assert taken[0].scalar(PID) == pid
    taken[0].close()
    assert pid_of(engine) == pid  # nor is it doomed
    assert pool_guard.stats()["retired"] == 0


class Strict(psycopg2.extensions.connection):
    """Closing twice is an error: PyMySQL, mysqlclient and pg8000 have it so."""

    def close(self) -> None:
        if self.closed:
            raise psycopg2.InterfaceError("Already closed")
        super().close()


def test_no_connection_is_closed_twice(
    postgres: PostgreSQL, make_engine: MakeEngine, fill: Fill, complaints: None
) -> None:
    engine = make_engine(postgres.url(), connect_args={"connection_factory": Strict})
    pool_guard = guard(engine, idle_timeout=0.1)
    fill(engine, 4)
    retired(pool_guard, 4)
    fill(engine, 2)  # two entries get a new connection, two stay as they are
    retired(pool_guard, 6)
    engine.dispose()
    assert pool_guard.stats()["connections"] == 0


def test_a_listener_for_all_pools_that_uses_each_connection_never_meets_a_retired_one(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, complaints: None
) -> None:
    """It runs before the guard's own listener."""

    def use(connection: Any, entry: Any, proxy: Any) -> None:
        connection.cursor().execute("set application_name = 'used'")

    event.listen(Pool, "checkout", use)
    try:
        engine = make_engine(postgres.url(driver))
        pool_guard = guard(engine, idle_timeout=0.1)
        for count in (1, 2, 3):
            assert pid_of(engine)
            retired(pool_guard, count)
    finally:
        event.remove(Pool, "checkout", use)


def test_listeners_to_the_end_of_a_retired_connection_meet_the_one_they_know(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, complaints: None
) -> None:
    engine = make_engine(postgres.url(driver))
    opened: dict[int, Any] = {}
    event.listen(engine, "connect", lambda connection, entry: opened.update({id(connection): connection}))
    event.listen(engine, "close", lambda connection, entry: opened.pop(id(connection)))
    ended: list[Any] = []
    event.listen(engine, "invalidate", lambda connection, entry, error: ended.append(connection))
    pool_guard = guard(engine, idle_timeout=0.1)
    for count in (1, 2, 3):
        assert pid_of(engine)
        (connection,) = opened.values()
        retired(pool_guard, count)
        assert pid_of(engine)
        assert ended[-1] is connection
    assert len(opened) == 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"pool_use_lifo": True}, {"pool_recycle": 0}])
def test_housekeeping_and_checkouts_at_full_speed_never_meet(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, complaints: None, options: dict[str, Any]
) -> None:
    threads, rounds = 8, 300
    engine = make_engine(postgres.url(driver), pool_size=threads, **options)
    pool_guard = guard(engine, idle_timeout=0.002, max_lifetime=0.5)
    over = threading.Event()

    def keep_house() -> None:
        while not over.wait(0.0005):
            pool_guard.sweep()

    def work(seed: int) -> list[Exception]:
        choice = random.Random(seed)
        errors: list[Exception] = []
        for _ in range(rounds):
            try:
                with engine.connect() as connection:
                    assert connection.scalar(text("select :n"), {"n": seed}) == seed
            except (exc.SQLAlchemyError, AssertionError) as error:
                errors.append(error)
            if choice.random() < 0.5:
                time.sleep(choice.uniform(0.0, 0.004))
        return errors

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    keepers = [threading.Thread(target=keep_house) for _ in range(2)]
    for keeper in keepers:
        keeper.start()
    try:
        with ThreadPoolExecutor(threads) as pool:
            errors = [error for some in pool.map(work, range(threads)) for error in some]
    finally:
        over.set()
        for keeper in keepers:
            keeper.join()
        sys.setswitchinterval(before)
    assert errors == []
    stats = pool_guard.stats()
    assert stats["checkouts"] == threads * rounds
    if "pool_recycle" not in options:
        assert stats["retired"] > 20  # the race took place
        closed = stats["retired"] + sum(stats["replaced"].values())
        assert stats["connects"] == closed + stats["connections"]
    engine.dispose()
    wait_until(lambda: pool_guard.stats()["connections"] == 0, timeout=60.0, what="the end")
