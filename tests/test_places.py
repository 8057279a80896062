"""A pool with fewer places than callers, while the database is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, create_engine, pool, text
from sqlalchemy.exc import OperationalError, TimeoutError

from wsgi_dbguard import DatabaseUnavailable, guard
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.request import Request, current


class Database:
    """Opens real connections while it is up."""

    def __init__(self, url: str) -> None:
        self.url = url.replace("+psycopg2", "")
        self.up = True
        self.attempts = 0

    def __call__(self) -> Any:
        self.attempts += 1
        if not self.up:
            raise psycopg2.OperationalError("Connection refused")
        return psycopg2.connect(self.url)


@contextmanager
def crowded(postgres: Any, **settings: Any) -> Iterator[tuple[Engine, Database]]:
    """An engine with one place only, and a database that is away."""
    database = Database(postgres.url())
    engine = create_engine("postgresql+psycopg2://", creator=database, pool_size=1, max_overflow=0, pool_timeout=60.0)
    guard(engine, **settings)
    database.up = False
    try:
        yield engine, database
    finally:
        database.up = True
        engine.dispose()


def ask(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("select 1")))


@pytest.fixture
def crowd() -> Iterator[Any]:
    with ThreadPoolExecutor(8) as threads:
        yield threads.submit


def until_waiting(engine: Engine, count: int) -> None:
    wait_until(lambda: guard(engine).stats()["waiting"] == count, timeout=60.0, what=f"{count} waiting")


def test_who_finds_no_place_goes_on_when_the_database_is_back(postgres: Any, crowd: Any) -> None:
    with crowded(postgres, hold=60.0) as (engine, database):
        callers: list[Future[int]] = [crowd(ask, engine) for _ in range(5)]
        until_waiting(engine, 5)
        database.up = True
        assert [caller.result(60.0) for caller in callers] == [1] * 5
        stats = guard(engine).stats()
        assert (stats["waiting"], stats["refused"], stats["away"]) == (0, 0, False)
        assert "_do_get" not in vars(engine.pool)


def test_who_finds_no_place_waits_no_longer_than_hold(postgres: Any, crowd: Any) -> None:
    with crowded(postgres, hold=0.5) as (engine, _):
        began = time.monotonic()
        callers = [crowd(ask, engine) for _ in range(5)]
        failures = [type(caller.exception(60.0)) for caller in callers]
        # One of them made the attempts. SQLAlchemy would have the others wait for 60 seconds.
        assert set(failures) <= {DatabaseUnavailable, OperationalError}
        assert time.monotonic() - began < 30.0
        assert guard(engine).stats()["waiting"] == 0


def test_a_place_that_is_given_up_is_taken_by_one_that_waits(postgres: Any, crowd: Any) -> None:
    def almost_out_of_patience() -> int:
        request = Request({})
        request.held = 59.5
        current.set(request)
        return ask(engine)

    with crowded(postgres, hold=60.0) as (engine, database):
        first = crowd(copy_context().run, almost_out_of_patience)
        until_waiting(engine, 1)
        second = crowd(ask, engine)
        until_waiting(engine, 2)
        assert isinstance(first.exception(30.0), OperationalError)
        until_waiting(engine, 1)
        attempts = database.attempts
        wait_until(lambda: database.attempts > attempts, timeout=30.0, what="an attempt by the second")
        database.up = True
        assert second.result(30.0) == 1


def test_a_connection_that_comes_back_is_for_one_that_waits(postgres: Any, crowd: Any) -> None:
    # "Too many connections": what is open works.
    with crowded(postgres, hold=60.0) as (engine, database):
        database.up = True
        connection = engine.connect()
        database.up = False
        guard(engine).breaker._failed(psycopg2.OperationalError("sorry, too many clients already"))
        caller = crowd(ask, engine)
        until_waiting(engine, 1)
        attempts = database.attempts
        connection.close()
        assert caller.result(60.0) == 1
        assert database.attempts == attempts
        assert guard(engine).breaker.away


def test_an_exhausted_pool_is_no_outage(postgres: Any) -> None:
    database = Database(postgres.url())
    engine = create_engine("postgresql+psycopg2://", creator=database, pool_size=1, max_overflow=0, pool_timeout=0.01)
    guard(engine, hold=60.0)
    with engine.connect(), pytest.raises(TimeoutError, match="QueuePool limit"):
        engine.connect()
    engine.dispose()


def test_a_pool_timeout_that_is_shorter_counts(postgres: Any, crowd: Any) -> None:
    with crowded(postgres, hold=60.0) as (engine, database):
        engine.pool._timeout = 0.05  # type: ignore[attr-defined]
        first = crowd(ask, engine)
        until_waiting(engine, 1)
        with pytest.raises(DatabaseUnavailable):
            ask(engine)
        database.up = True
        assert first.result(60.0) == 1


@pytest.mark.parametrize("kind", [pool.NullPool, pool.SingletonThreadPool, pool.StaticPool])
def test_other_pools_have_no_places(postgres: Any, kind: type[pool.Pool]) -> None:
    database = Database(postgres.url())
    engine = create_engine("postgresql+psycopg2://", creator=database, poolclass=kind)
    guard(engine, hold=0.05)
    database.up = False
    with pytest.raises(OperationalError):
        ask(engine)
    assert "_do_get" not in vars(engine.pool)
    engine.dispose()
