"""What the guard tells is what the server says: `stats` and `repr` beside pg_stat_activity."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine, text

from wsgi_dbguard import PoolGuard, guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.request import Request, current

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]
NAME = "statistics"


@pytest.fixture
def engine(postgres: PostgreSQL, driver: str, make_engine: MakeEngine) -> Engine:
    return make_engine(postgres.url(driver, application_name=NAME), pool_size=3, max_overflow=7)


def open_at(postgres: PostgreSQL) -> int:
    ((count,),) = postgres.query("select count(*) from pg_stat_activity where application_name = %s", NAME)
    return int(count)


def agrees(pool_guard: PoolGuard, postgres: PostgreSQL, connections: int, idle: int) -> None:
    """Both tell the same; the server may take a moment to see a connection go."""
    stats = pool_guard.stats()
    assert (stats["connections"], stats["idle"]) == (connections, idle)
    assert repr(pool_guard) == (
        f"<PoolGuard {pool_guard.name} pid={os.getpid()} connections={connections} idle={idle}>"
    )
    wait_until(lambda: open_at(postgres) == connections, timeout=60.0, what=f"{connections} connections at the server")


def test_connections_are_counted_through_all_that_can_happen_to_them(
    postgres: PostgreSQL, engine: Engine, fill: Fill
) -> None:
    pool_guard = guard(engine)
    agrees(pool_guard, postgres, 0, 0)
    with ExitStack() as stack:
        connections = [stack.enter_context(engine.connect()) for _ in range(5)]
        agrees(pool_guard, postgres, 5, 0)
        connections.pop().close()
        agrees(pool_guard, postgres, 5, 1)
        connections.pop().invalidate()
        agrees(pool_guard, postgres, 4, 1)
        detached = connections.pop()
        detached.detach()
        agrees(pool_guard, postgres, 4, 1)
        detached.close()
        del detached
        agrees(pool_guard, postgres, 3, 1)
        connections.clear()
    # The pool has three places, two of them empty: the others were overflow.
    agrees(pool_guard, postgres, 1, 1)
    engine.dispose()
    agrees(pool_guard, postgres, 0, 0)
    postgres.terminate(*fill(engine, 3))
    fill(engine, 3)
    agrees(pool_guard, postgres, 3, 3)


def test_retired_connections_are_gone_from_both(postgres: PostgreSQL, engine: Engine, fill: Fill) -> None:
    pool_guard = guard(engine, idle_timeout=0.1)
    fill(engine, 3)
    # It is counted before it is closed.
    wait_until(lambda: pool_guard.stats()["connections"] == 0, timeout=60.0, what="retirement")
    assert pool_guard.stats()["retired"] == 3
    agrees(pool_guard, postgres, 0, 0)


def test_a_connection_that_nobody_closed_is_gone_when_it_was_collected(postgres: PostgreSQL, engine: Engine) -> None:
    pool_guard = guard(engine)
    forgotten = engine.raw_connection()
    agrees(pool_guard, postgres, 1, 0)
    del forgotten
    agrees(pool_guard, postgres, 1, 1)


def test_counts_are_exact_with_many_threads(engine: Engine) -> None:
    pool_guard = guard(engine)

    def work(_: int) -> None:
        for _ in range(100):
            engine.raw_connection().close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert pool_guard.stats()["checkouts"] == 800
    engine.dispose()
    assert pool_guard.stats()["checkouts"] == 800


def test_a_request_counts_its_checkouts_and_replacements(postgres: PostgreSQL, engine: Engine, fill: Fill) -> None:
    guard(engine)
    postgres.terminate(*fill(engine, 2))
    request = Request({"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
    token = current.set(request)
    try:
        for _ in range(3):
            with engine.connect() as connection:
                connection.execute(text("select 1"))
    finally:
        current.reset(token)
    with engine.connect():
        pass
    assert (request.checkouts, request.replaced) == (3, 2)
