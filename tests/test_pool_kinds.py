"""Every kind of pool and engine."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psycopg2
import pytest
from sqlalchemy import Engine, create_engine, exc, text
from sqlalchemy.pool import AssertionPool, NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from wsgi_dbguard import guard, guards
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

from .backends import PID, pid_of

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]
POOLS = [QueuePool, NullPool, SingletonThreadPool, StaticPool, AssertionPool]


@pytest.mark.parametrize("poolclass", POOLS)
def test_a_connection_that_dies_idle_is_replaced_in_every_kind_of_pool(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, poolclass: type[Pool]
) -> None:
    engine = make_engine(postgres.url(driver), poolclass=poolclass)
    pool_guard = guard(engine)
    for _ in range(3):
        postgres.terminate(*set(postgres.backends()) & {pid_of(engine)})
        assert pid_of(engine)
        assert pid_of(engine)
    stats = pool_guard.stats()
    if poolclass is NullPool:
        assert stats["connects"] == stats["checkouts"] == 9
        assert stats["connections"] == 0
    else:
        assert stats["connects"] == 4
        assert stats["replaced"] == {"dead": 3}
    assert stats["pings"] == 0


@pytest.mark.parametrize("options", [{}, {"pool_use_lifo": True}, {"pool_size": 2}, {"pool_size": 0}])
def test_a_queue_pool_is_kept_alive_also_as_a_stack_and_in_its_overflow(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, options: dict[str, Any]
) -> None:
    engine = make_engine(postgres.url(driver), **options)
    guard(engine)
    for _ in range(3):
        postgres.terminate(*set(postgres.backends()) & set(fill(engine, 5)))
        assert len(set(fill(engine, 5))) == 5
    with engine.connect() as connection:  # terminated while it is out, then put back
        postgres.terminate(*set(postgres.backends()) & set(fill(engine, 4)))
        connection.execute(text("select 1"))
    assert len(set(fill(engine, 5))) == 5


def test_each_thread_of_a_singleton_thread_pool_gets_a_live_connection(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver), poolclass=SingletonThreadPool)
    pool_guard = guard(engine)
    together = threading.Barrier(4, timeout=60.0)

    def work(number: int) -> bool:
        pid = pid_of(engine)
        assert pid_of(engine) == pid
        together.wait()
        if not number:
            postgres.terminate(*postgres.backends())
        together.wait()
        with engine.connect() as outer, engine.connect() as inner:  # one connection, one check
            assert outer.scalar(PID) == inner.scalar(PID)
            return bool(inner.scalar(PID) != pid)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4
    assert pool_guard.stats()["invalidations"] == 1
    assert pool_guard.stats()["connects"] == 8


# StaticPool: one connection for all


def test_a_second_user_of_a_static_pool_neither_pings_nor_replaces_the_first_ones_connection(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver), poolclass=StaticPool)
    pool_guard = guard(engine, ping_after=0.0)
    first = engine.raw_connection()
    backend = first.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    second = engine.raw_connection()
    postgres.terminate(backend)
    third = engine.raw_connection()
    assert first.dbapi_connection is second.dbapi_connection is third.dbapi_connection
    stats = pool_guard.stats()
    assert (stats["checkouts"], stats["connects"], stats["pings"], stats["replaced"]) == (3, 1, 0, {})
    for user in (first, second, third):
        user.close()
    assert pid_of(engine) != backend


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_a_static_pool_is_checked_again_when_its_users_have_left_in_any_order(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, first_leaves_first: bool
) -> None:
    engine = make_engine(postgres.url(driver), poolclass=StaticPool)
    pool_guard = guard(engine, ping_after=0.0)
    for _ in range(3):
        users = [engine.connect(), engine.connect()]
        pid = users[1].scalar(PID) or 0
        for user in users if first_leaves_first else reversed(users):
            user.close()
        postgres.terminate(pid)
        assert pid_of(engine) != pid
    assert pool_guard.stats()["replaced"] == {"dead": 3}


def test_a_static_pool_whose_connection_was_taken_over_by_the_garbage_collector_is_checked_again(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver), poolclass=StaticPool)
    guard(engine)
    pid = pid_of(engine)
    forgotten = engine.raw_connection()
    del forgotten
    postgres.terminate(pid)
    assert pid_of(engine) != pid


# Engines


def test_an_engine_with_a_creator_is_guarded(postgres: PostgreSQL, make_engine: MakeEngine, fill: Fill) -> None:
    dsn = postgres.url().replace("+psycopg2", "")
    engine = make_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(dsn))
    pool_guard = guard(engine)
    postgres.terminate(*fill(engine, 3))
    assert len(fill(engine, 3)) == 3
    assert pool_guard.stats()["connects"] == 6


def test_an_engine_with_a_pool_of_the_users_is_guarded(
    postgres: PostgreSQL, make_engine: MakeEngine, fill: Fill
) -> None:
    dsn = postgres.url().replace("+psycopg2", "")
    engine = make_engine("postgresql+psycopg2://", pool=QueuePool(cast(Any, lambda: psycopg2.connect(dsn))))
    pool_guard = guard(engine)
    postgres.terminate(*fill(engine, 3))
    assert len(fill(engine, 3)) == 3
    assert pool_guard.stats()["connects"] == 6


def test_engines_do_not_condemn_each_others_connections(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    one, two = make_engine(postgres.url(driver)), make_engine(postgres.url(driver))
    both = guard(one), guard(two)
    pids = fill(one, 3), fill(two, 3)
    postgres.terminate(*pids[0])
    assert not set(fill(one, 3)) & set(pids[0])
    assert set(fill(two, 3)) == set(pids[1])
    assert [each.stats()["invalidations"] for each in both] == [1, 0]


def test_the_guard_stays_when_an_engine_is_disposed_and_used_again(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    fill(engine, 3)
    engine.dispose()
    assert pool_guard.stats()["connections"] == 0
    postgres.terminate(*fill(engine, 3))
    assert len(fill(engine, 3)) == 3
    stats = pool_guard.stats()
    assert (stats["connects"], stats["invalidations"], stats["connections"]) == (9, 1, 3)
    assert guard(engine) is pool_guard


@pytest.mark.parametrize("guarded", ["engine", "copy"])
def test_engines_with_execution_options_share_pool_and_guard(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, guarded: str
) -> None:
    engine = make_engine(postgres.url(driver))
    copy = engine.execution_options(isolation_level="AUTOCOMMIT")
    pool_guard = guard(engine if guarded == "engine" else copy)
    later = engine.execution_options(stream_results=True)
    assert guard(engine) is guard(copy) is guard(later) is pool_guard
    for each in (engine, copy, later):
        postgres.terminate(*fill(engine, 3))
        assert len(fill(each, 3)) == 3
    with copy.connect() as connection:
        postgres.terminate(connection.scalar(PID) or 0)
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("select 1"))
    assert len(fill(engine, 3)) == 3
    assert pool_guard.stats()["invalidations"] == 4


def test_the_guard_of_a_copy_outlives_the_copy(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine.execution_options(stream_results=True), idle_timeout=0.05)
    postgres.terminate(*set(fill(engine, 3)) & set(postgres.backends()))
    assert len(fill(engine, 3)) == 3
    assert guard(engine) is pool_guard


def test_engines_that_were_made_with_one_pool_share_its_guard(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    other = make_engine(postgres.url(driver), pool=engine.pool)
    pool_guard = guard(engine)
    assert guard(other) is pool_guard
    assert guards.guards().count(pool_guard) == 1
    fill(engine, 1)
    fill(other, 1)
    assert (pool_guard.stats()["connects"], pool_guard.stats()["checkouts"]) == (1, 2)
    for each in (engine, other):
        with each.connect() as connection:
            postgres.terminate(connection.scalar(PID) or 0)
            with pytest.raises(exc.DBAPIError):
                connection.execute(text("select 1"))
    assert pool_guard.stats()["invalidations"] == 2
    engine.dispose()
    assert guard(make_engine(postgres.url(driver), pool=engine.pool)) is pool_guard


def test_sqlite_is_left_alone(tmp_path: Path, make_engine: MakeEngine) -> None:
    for engine in (make_engine("sqlite://"), make_engine(f"sqlite:///{tmp_path / 'file.db'}")):
        listeners = [list(engine.pool.dispatch.checkout), list(engine.pool.dispatch.connect)]
        pool_guard = guard(engine, ping_after=0.0, idle_timeout=0.001, max_lifetime=0.001)
        assert [list(engine.pool.dispatch.checkout), list(engine.pool.dispatch.connect)] == listeners
        for _ in range(2):
            with engine.begin() as connection:
                connection.execute(text("create table if not exists t (x)"))
                connection.execute(text("insert into t values (1)"))
        with engine.connect() as connection:
            assert connection.scalar(text("select count(*) from t")) == 2
        assert guard(engine) is pool_guard
        assert pool_guard.stats()["connects"] == 0


def test_pool_pre_ping_beside_the_guard_works_and_is_warned_of_once(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(postgres.url(driver), pool_pre_ping=True)
    guard(engine)
    guard(engine)
    postgres.terminate(*fill(engine, 3))
    assert len(fill(engine, 3)) == 3
    warnings = [each.message for each in caplog.records if "pool_pre_ping" in each.message]
    assert len(warnings) == 1


def test_a_pool_that_no_guard_looks_after_is_left_alone(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine, other = make_engine(postgres.url(driver)), make_engine(postgres.url(driver))
    pid = pid_of(other)
    guard(engine)
    assert pid_of(other) == pid
    postgres.terminate(pid)
    with pytest.raises(exc.DBAPIError):
        pid_of(other)
    postgres.terminate(pid_of(other))
    guard(other)
    assert pid_of(other)


def test_a_connection_whose_info_the_application_cleared_is_checked_all_the_same(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver))
    guard(engine)
    for _ in range(3):
        with engine.connect() as connection:
            pid = connection.scalar(PID)
            connection.info.clear()
        postgres.terminate(pid or 0)
        assert pid_of(engine) != pid


def test_engines_that_nobody_needs_any_more_are_collected_and_their_guards_with_them(
    postgres: PostgreSQL, driver: str
) -> None:
    engine = create_engine(postgres.url(driver))
    references: list[weakref.ref[Any]] = [
        weakref.ref(engine),
        weakref.ref(engine.pool),
        weakref.ref(engine.dialect),
        weakref.ref(guard(engine)),
    ]
    pid_of(engine)
    engine.dispose()
    del engine

    def collected() -> bool:
        gc.collect()
        return all(reference() is None for reference in references)

    # Not while housekeeping looks through it.
    wait_until(collected, timeout=60.0, what="the end of engine and guard")
