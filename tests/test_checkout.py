"""What is known of a connection at its checkout: whose it is, what it has been through, and who takes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.pool import NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from wsgi_dbguard import guard, registry
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.request import Request, current
from wsgi_dbguard.transactions import watch

from .backends import pid_of

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]


class ApartPool(QueuePool):
    """Hears nothing of what listens to the class `Pool`."""

    _sa_propagate_class_events = False


@pytest.fixture
def request_() -> Iterator[Request]:
    """A request that runs."""
    request = Request({"REQUEST_METHOD": "GET"})
    token = current.set(request)
    yield request
    current.reset(token)


# Pools that hear nothing of the class's listeners


def test_a_pool_that_hears_nothing_of_its_class_is_guarded(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver), poolclass=ApartPool)
    pool_guard = guard(engine)
    for _ in range(2):
        postgres.terminate(*fill(engine, 3))
        assert len(fill(engine, 3)) == 3
        engine.dispose()
    stats = pool_guard.stats()
    assert stats["replaced"] == {"dead": 2, "condemned": 4}
    assert stats["connects"] == stats["checkouts"] == 12
    assert stats["connections"] == 0


def test_a_connection_in_the_raw_of_such_a_pool_is_counted(request_: Request) -> None:
    engine = create_engine("sqlite://", poolclass=ApartPool)
    watch(engine)
    engine.raw_connection().close()
    assert request_.unseen == 1
    engine.dispose()


# Connections whose info the application has cleared


def test_a_connection_whose_info_was_cleared_is_known_as_before(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    with engine.connect() as connection:
        (link,) = pool_guard.links()
        connection.info.clear()
    link.doomed = "condemned"  # perhaps its socket does not tell
    pid = pid_of(engine)
    assert pool_guard.stats()["replaced"] == {"condemned": 1}
    assert pid_of(engine) == pid
    assert len(pool_guard.links()) == len([each for each in registry.links if each.guard is pool_guard]) == 1


def test_a_connection_whose_info_was_cleared_is_idle_since_its_last_use(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=60.0)
    with engine.connect() as connection:
        connection.info.clear()
    pid_of(engine)
    for link in pool_guard.links():
        link.used = min(link.used, monotonic() - 59.0)
    pid = pid_of(engine)
    for link in pool_guard.links():
        assert monotonic() - link.used < 30.0
    pool_guard.sweep()
    assert pid_of(engine) == pid


def test_one_that_was_closed_while_it_lay_idle_is_replaced_alone_though_its_info_was_cleared(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, complaints: None
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=0.2)
    other = engine.raw_connection()
    with engine.connect() as connection:
        connection.info.clear()

    def retired() -> bool:
        return bool(pool_guard.stats()["retired"] == 1)

    wait_until(retired, timeout=60.0, what="the end of one connection")
    assert pid_of(engine)
    other.close()
    stats = pool_guard.stats()
    assert (stats["invalidations"], stats["pings"], stats["replaced"]) == (0, 0, {})


# Who takes it


POOLS = [QueuePool, NullPool, SingletonThreadPool, StaticPool]


@pytest.mark.parametrize("poolclass", POOLS)
def test_connections_are_known_for_what_they_are(request_: Request, poolclass: type[Pool]) -> None:
    engine = create_engine("sqlite://", poolclass=poolclass)
    watch(engine)
    with engine.connect() as connection:
        connection.invalidate()
        connection.execute(text("select 1"))
    assert request_.unseen == 0
    engine.raw_connection().close()
    engine.pool.connect().close()
    assert request_.unseen == 2
    engine.dispose()


@pytest.mark.parametrize("poolclass", POOLS)
@pytest.mark.parametrize("occasion", ["checkout", "engine_connect"])
@pytest.mark.parametrize("way", ["raw_connection", "pool.connect"])
def test_one_in_the_raw_that_a_listener_takes_while_a_connection_is_made_is_counted(
    request_: Request, poolclass: type[Pool], occasion: str, way: str
) -> None:
    """Such as a listener that keeps a journal past SQLAlchemy: a second run would write it twice."""
    engine = create_engine("sqlite://", poolclass=poolclass)
    journal = create_engine("sqlite://", poolclass=poolclass)
    watch(engine)
    watch(journal)

    def write(*ignored: Any) -> None:
        taken = journal.raw_connection() if way == "raw_connection" else journal.pool.connect()
        taken.close()

    event.listen(engine, occasion, write)
    with engine.connect():
        pass
    assert request_.unseen == 1
    event.remove(engine, occasion, write)
    event.listen(engine, occasion, lambda *ignored: journal.connect().close())
    with engine.connect():
        pass
    assert request_.unseen == 1
    for each in (engine, journal):
        each.dispose()


@pytest.mark.parametrize("poolclass", POOLS)
def test_one_in_the_raw_that_a_creator_takes_is_counted(request_: Request, poolclass: type[Pool]) -> None:
    journal = create_engine("sqlite://", poolclass=poolclass)

    def create() -> sqlite3.Connection:
        journal.raw_connection().close()
        return sqlite3.connect(":memory:")

    engine = create_engine("sqlite://", creator=create, poolclass=poolclass)
    watch(engine)
    watch(journal)
    with engine.connect():
        pass
    assert request_.unseen == 1
    for each in (engine, journal):
        each.dispose()


def test_a_connection_is_known_in_a_pool_that_takes_a_detour(request_: Request) -> None:
    class Detour(QueuePool):
        def connect(self) -> Any:
            return self._further()

        def _further(self) -> Any:
            return super().connect()

    class Own(Connection):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)

    engine = create_engine("sqlite://", poolclass=Detour)
    engine._connection_cls = Own
    watch(engine)
    with engine.connect():
        pass
    assert request_.unseen == 0
    engine.raw_connection().close()
    assert request_.unseen == 1
    engine.dispose()
