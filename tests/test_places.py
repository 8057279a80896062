"""A pool with fewer places than callers: who gives a place up, because the database is away, passes it on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, create_engine, pool, text
from sqlalchemy.exc import OperationalError, TimeoutError

from wsgi_dbguard import guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until


class Database:
    """Opens real connections while it is up."""

    def __init__(self, url: str) -> None:
        self.url = url.replace("+psycopg2", "")
        self.up = True
        self.attempts = 0
        self.error: BaseException = psycopg2.OperationalError("Connection refused")
        self.gate = threading.Event()  # an attempt ends when it is set
        self.gate.set()

    def __call__(self) -> Any:
        self.attempts += 1
        self.gate.wait(60.0)
        if not self.up:
            raise self.error
        return psycopg2.connect(self.url)


@contextmanager
def crowded(postgres: PostgreSQL, **settings: Any) -> Iterator[tuple[Engine, Database]]:
    """An engine with one place only, and a database that is away."""
    database = Database(postgres.url())
    engine = create_engine("postgresql+psycopg2://", creator=database, pool_size=1, max_overflow=0, pool_timeout=60.0)
    guard(engine, **settings)
    database.up = False
    try:
        yield engine, database
    finally:
        database.up = True
        database.gate.set()
        engine.dispose()


def ask(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("select 1")))


@pytest.fixture
def crowd() -> Iterator[Any]:
    with ThreadPoolExecutor(8) as threads:
        yield threads.submit


def until_queued(engine: Engine, count: int) -> None:
    """So many wait for a place."""
    condition = engine.pool._pool.not_empty  # type: ignore[attr-defined]
    wait_until(lambda: len(condition._waiters) == count, timeout=60.0, what=f"{count} in the pool's queue")


def until_waiting(engine: Engine) -> None:
    wait_until(lambda: guard(engine).stats()["waiting"] == 1, timeout=60.0, what="the one that has the place")


def capacity(engine: Engine) -> tuple[int, int]:
    """Connections that are out or idle; and how many can be had at once, without waiting."""
    engine.pool._timeout = 0  # type: ignore[attr-defined]
    taken = 0
    with ExitStack() as stack, suppress(TimeoutError):
        while taken < 9:
            stack.enter_context(engine.connect())
            taken += 1
    return engine.pool.checkedout(), taken  # type: ignore[attr-defined]


def test_they_go_on_when_the_database_is_back(postgres: PostgreSQL, crowd: Any) -> None:
    with crowded(postgres, hold=60.0) as (engine, database):
        callers: list[Future[int]] = [crowd(ask, engine) for _ in range(5)]
        until_queued(engine, 4)
        until_waiting(engine)
        database.up = True
        assert [caller.result(60.0) for caller in callers] == [1] * 5
        assert guard(engine).stats()["refused"] == 0
        assert capacity(engine) == (0, 1)


@pytest.mark.parametrize("hold", [0.0, 0.5])
def test_they_are_told_when_the_one_before_them_gives_up(postgres: PostgreSQL, crowd: Any, hold: float) -> None:
    with crowded(postgres, hold=hold) as (engine, database):
        database.gate.clear()
        callers = [crowd(ask, engine) for _ in range(5)]
        until_queued(engine, 4)
        database.gate.set()
        # SQLAlchemy would have all but one wait for the pool's timeout: a minute.
        assert all(isinstance(caller.exception(30.0), OperationalError) for caller in callers)
        database.up = True
        wait_until(lambda: _is_back(engine), timeout=60.0, what="the database")
        assert capacity(engine) == (0, 1)


def _is_back(engine: Engine) -> bool:
    try:
        return ask(engine) == 1
    except OperationalError:
        return False


def test_without_the_guard_nobody_is_told(postgres: PostgreSQL, crowd: Any) -> None:
    database = Database(postgres.url())
    engine = create_engine("postgresql+psycopg2://", creator=database, pool_size=1, max_overflow=0, pool_timeout=60.0)
    database.up = False
    database.gate.clear()
    first = crowd(ask, engine)
    wait_until(lambda: database.attempts, timeout=60.0, what="an attempt")
    second = crowd(ask, engine)
    until_queued(engine, 1)
    database.gate.set()
    assert isinstance(first.exception(30.0), OperationalError)
    database.up = True
    assert ask(engine) == 1  # there is a place, and its connection is what the other one is woken by
    assert second.result(30.0) == 1
    engine.dispose()


def test_the_pool_of_a_later_dispose_passes_them_on_as_well(postgres: PostgreSQL, crowd: Any) -> None:
    with crowded(postgres) as (engine, database):
        engine.dispose()
        database.gate.clear()
        callers = [crowd(ask, engine) for _ in range(3)]
        until_queued(engine, 2)
        database.gate.set()
        assert all(isinstance(caller.exception(30.0), OperationalError) for caller in callers)


def test_an_interrupt_of_the_one_that_has_the_place_passes_it_on(postgres: PostgreSQL, crowd: Any) -> None:
    with crowded(postgres) as (engine, database):
        database.gate.clear()
        database.error = KeyboardInterrupt()
        first = crowd(ask, engine)
        wait_until(lambda: database.attempts, timeout=60.0, what="an attempt")
        second = crowd(ask, engine)
        until_queued(engine, 1)
        database.gate.set()
        with pytest.raises(KeyboardInterrupt):
            first.result(30.0)
        with pytest.raises(KeyboardInterrupt):
            second.result(30.0)
        database.up = True
        assert capacity(engine) == (0, 1)


def test_a_connection_in_the_pool_is_no_concern_of_an_outage(postgres: PostgreSQL) -> None:
    # "Too many connections": what is open works.
    with crowded(postgres) as (engine, database):
        database.up = True
        assert ask(engine) == 1
        database.up = False
        guard(engine).breaker._failed(psycopg2.OperationalError("sorry, too many clients already"))
        assert [ask(engine) for _ in range(3)] == [1] * 3


def test_an_exhausted_pool_is_no_outage(postgres: PostgreSQL) -> None:
    engine = create_engine(postgres.url(), pool_size=1, max_overflow=0, pool_timeout=0.01)
    guard(engine, hold=60.0)
    with engine.connect(), pytest.raises(TimeoutError, match="QueuePool limit"):
        engine.connect()
    assert capacity(engine) == (0, 1)
    engine.dispose()


@pytest.mark.parametrize("kind", [pool.NullPool, pool.SingletonThreadPool, pool.StaticPool])
def test_other_pools_have_no_places(postgres: PostgreSQL, kind: type[pool.Pool]) -> None:
    database = Database(postgres.url())
    engine = create_engine("postgresql+psycopg2://", creator=database, poolclass=kind)
    guard(engine)
    database.up = False
    with pytest.raises(OperationalError):
        ask(engine)
    engine.dispose()
