"""Connections that died while they lay in the pool: no user of the pool ever meets one. Each story fails unguarded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from wsgi_dbguard import guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]
COUNT = 10


@pytest.fixture(scope="module")
def victim() -> Iterator[PostgreSQL]:
    """A server to be stopped and started."""
    with PostgreSQL() as server:
        yield server


def serially(engine: Engine) -> list[DBAPIError]:
    """As many checkouts as there are connections, one after the other; the errors. The pool takes turns (FIFO)."""
    errors = []
    for _ in range(COUNT):
        try:
            with engine.connect() as connection:
                assert connection.scalar(text("select 1")) == 1
        except DBAPIError as error:
            errors.append(error)
    return errors


def at_once(engine: Engine) -> list[DBAPIError]:
    """The same, from as many threads at once, each with a connection of its own."""
    together = threading.Barrier(COUNT, timeout=60.0)

    def ask(_: int) -> DBAPIError | None:
        try:
            together.wait()
            with engine.connect() as connection:
                together.wait()
                assert connection.scalar(text("select 1")) == 1
                return None
        except DBAPIError as error:
            return error

    with ThreadPoolExecutor(COUNT) as pool:
        return [error for error in pool.map(ask, range(COUNT)) if error is not None]


WAYS = pytest.mark.parametrize("ask", [serially, at_once])


@WAYS
def test_ten_connections_terminated_while_idle_cost_no_error(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, ask: Any
) -> None:
    unguarded = make_engine(postgres.url(driver), pool_size=COUNT)
    guarded = make_engine(postgres.url(driver), pool_size=COUNT)
    pool_guard = guard(guarded)
    for outage in (1, 2, 3):
        postgres.terminate(*fill(guarded, COUNT), *fill(unguarded, COUNT))
        assert ask(unguarded)
        assert ask(guarded) == []
        stats = pool_guard.stats()
        assert stats["connects"] == COUNT + outage * COUNT
        assert stats["invalidations"] == outage
        assert sum(stats["replaced"].values()) == outage * COUNT
        assert stats["pings"] == 0


@pytest.mark.parametrize("way", ["fast", "immediate", "kill"])
@WAYS
def test_a_restart_while_idle_costs_no_error(
    victim: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, ask: Any, way: Any
) -> None:
    unguarded = make_engine(victim.url(driver), pool_size=COUNT)
    guarded = make_engine(victim.url(driver), pool_size=COUNT)
    pool_guard = guard(guarded)
    fill(unguarded, COUNT)
    fill(guarded, COUNT)
    if way == "kill":
        victim.kill()
        victim.start()
    else:
        victim.restart(way)
    assert ask(unguarded)
    assert ask(guarded) == []
    assert pool_guard.stats()["connects"] == 2 * COUNT
    assert pool_guard.stats()["invalidations"] == 1


@pytest.mark.parametrize("fault", ["reset", "fin", "half_close"])
def test_connections_ended_by_the_network_cost_no_error(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, fault: str
) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        engine = make_engine(postgres.url_through(proxy.host, proxy.port, driver), pool_size=COUNT)
        pool_guard = guard(engine)
        fill(engine, COUNT)
        getattr(proxy, fault)()
        proxy.up()
        assert serially(engine) == []
        assert pool_guard.stats()["connects"] == 2 * COUNT


def test_connections_terminated_before_the_guard_came_cost_no_error(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver), pool_size=COUNT)
    pids = fill(engine, COUNT)
    pool_guard = guard(engine)
    postgres.terminate(*pids)
    assert serially(engine) == []
    assert pool_guard.stats()["connects"] == COUNT  # since it guards
    assert pool_guard.stats()["invalidations"] == 1


def test_while_the_database_is_away_the_error_is_that_of_connecting(
    victim: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(victim.url(driver), pool_size=COUNT)
    pool_guard = guard(engine)
    fill(engine, COUNT)
    victim.stop()
    try:
        errors = serially(engine)
    finally:
        victim.start()
    assert len(errors) == COUNT
    assert all("refused" in str(error) for error in errors)
    # Until the breaker's next attempt the error stays.
    wait_until(lambda: serially(engine) == [], timeout=60.0, what="the next attempt to connect")
    assert pool_guard.stats()["invalidations"] == 1


def test_one_dead_connection_condemns_those_that_are_in_use_but_not_those_that_come_later(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    doomed, alive = fill(engine, 2)
    with engine.connect() as idle, engine.connect() as old:
        assert idle.scalar(text("select pg_backend_pid()")) == doomed
        assert old.scalar(text("select pg_backend_pid()")) == alive
        idle.close()
        postgres.terminate(doomed)
        with engine.connect() as new:
            replacement = new.scalar(text("select pg_backend_pid()"))
            assert old.scalar(text("select 1")) == 1  # not taken away from its user
    pids = set(fill(engine, 2))
    assert replacement in pids
    assert alive not in pids
    assert pool_guard.stats()["replaced"] == {"dead": 1, "condemned": 1}
