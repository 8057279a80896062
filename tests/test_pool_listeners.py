"""The user's own listeners to pool events, beside the guard's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event, exc
from sqlalchemy.pool import Pool, QueuePool

from wsgi_dbguard import guard
from wsgi_dbguard.lab.postgres import PostgreSQL

from .backends import pid_of

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]


def test_the_users_listeners_run_as_before_and_see_live_connections_only(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    """Also one that was there before the guard, and wants to use the connection."""
    engine = make_engine(postgres.url(driver))
    pid_of(engine)  # the dialect's first look
    engine.dispose()
    heard: list[str] = []

    def use(name: str, connection: Any, entry: Any, proxy: Any) -> None:
        heard.append(name)
        connection.cursor().execute("set application_name = 'used'")

    event.listen(engine, "checkout", partial(use, "early"))
    event.listen(engine, "connect", lambda connection, entry: heard.append("connect"))
    guard(engine)
    event.listen(engine, "checkout", partial(use, "late"))
    event.listen(engine, "checkin", lambda connection, entry: heard.append("checkin"))
    event.listen(engine, "close", lambda connection, entry: heard.append("close"))
    pid = pid_of(engine)
    assert heard == ["connect", "early", "late", "checkin"]
    heard.clear()
    postgres.terminate(pid)
    assert pid_of(engine) != pid
    assert heard == ["close", "connect", "early", "late", "checkin"]


@pytest.mark.parametrize("when", ["before the guard", "after the guard"])
@pytest.mark.parametrize("error", [exc.DisconnectionError, exc.InvalidatePoolError])
def test_a_listener_of_the_users_that_condemns_a_connection_is_obeyed(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, when: str, error: type[Exception]
) -> None:
    engine = make_engine(postgres.url(driver))
    unwanted: set[int] = set()

    def refuse(connection: Any, entry: Any, proxy: Any) -> None:
        if connection.info.backend_pid in unwanted:
            raise error

    if when == "before the guard":
        event.listen(engine, "checkout", refuse)
    pool_guard = guard(engine)
    if when == "after the guard":
        event.listen(engine, "checkout", refuse)
    for _ in range(3):
        unwanted.add(pid_of(engine))
        assert pid_of(engine) not in unwanted
    postgres.terminate(pid_of(engine))
    assert pid_of(engine) not in unwanted
    assert pool_guard.stats()["replaced"] == {"dead": 1}


def test_the_classical_ping_recipe_beside_the_guard_still_works(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    def recipe(connection: Any, entry: Any, proxy: Any) -> None:
        try:
            connection.cursor().execute("select 1")
        except Exception as error:
            raise exc.DisconnectionError from error

    event.listen(Pool, "checkout", recipe)
    try:
        engine = make_engine(postgres.url(driver))
        guard(engine)
        postgres.terminate(*fill(engine, 3))
        assert len(fill(engine, 3)) == 3
    finally:
        event.remove(Pool, "checkout", recipe)


@pytest.mark.parametrize("target", [Pool, QueuePool, Engine, "inserted"])
@pytest.mark.parametrize("first", ["the listener", "the guard"])
def test_a_listener_that_uses_each_connection_never_meets_a_dead_one(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, target: Any, first: str
) -> None:
    """Wherever it listens, and when it came: the guard's check comes before it."""
    engine = make_engine(postgres.url(driver))
    used: list[int] = []

    def use(connection: Any, entry: Any, proxy: Any) -> None:
        connection.cursor().execute("set application_name = 'used'")
        used.append(connection.info.backend_pid)

    if first == "the guard":
        guard(engine)
    if target == "inserted":
        event.listen(engine, "checkout", use, insert=True)
    else:
        event.listen(target, "checkout", use)
    try:
        guard(engine)
        for _ in range(3):
            postgres.terminate(*fill(engine, 3))
            used.clear()
            assert fill(engine, 3) == used[::-1]
    finally:
        event.remove(engine if target == "inserted" else target, "checkout", use)


def test_an_error_of_the_users_listener_reaches_the_application(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)

    @event.listens_for(engine, "checkout")
    def fail(connection: Any, entry: Any, proxy: Any) -> None:
        raise ArithmeticError

    for _ in range(2):
        with pytest.raises(ArithmeticError):
            engine.connect()
    event.remove(engine, "checkout", fail)
    assert pid_of(engine)
    assert pool_guard.stats()["connections"] == 1
