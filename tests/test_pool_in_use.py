"""A connection that breaks in use, and clocks that are set: SQLAlchemy's errors stay, its side effects do not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError, ProgrammingError
from sqlalchemy.orm import Session

from wsgi_dbguard import guard
from wsgi_dbguard.lab.postgres import PostgreSQL

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]
PID = text("select pg_backend_pid()")
COUNT = 5


class WallClock:
    """`time.time`, which can be set."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.true = time.time

    def __call__(self) -> float:
        return self.true() + self.ahead


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def failures(engine: Engine, checkouts: int = COUNT) -> int:
    failed = 0
    for _ in range(checkouts):
        try:
            with engine.connect() as connection:
                connection.execute(text("select 1"))
        except DBAPIError:
            failed += 1
    return failed


def test_a_transaction_that_loses_its_connection_gets_the_error_and_the_pool_is_renewed_once(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    old = set(fill(engine, COUNT))
    with engine.connect() as connection:
        connection.execute(text("create temporary table t (x int)"))
        postgres.terminate(connection.scalar(PID) or 0)
        with pytest.raises(DBAPIError) as caught:
            connection.execute(text("insert into t values (1)"))
        assert caught.value.connection_invalidated
        assert connection.invalidated
        with pytest.raises(PendingRollbackError):
            connection.execute(text("select 1"))
        connection.rollback()
        assert connection.scalar(PID) not in old  # SQLAlchemy's own way on
    new = set(fill(engine, COUNT))
    assert not new & old
    assert set(fill(engine, COUNT)) == new
    stats = pool_guard.stats()
    assert stats["invalidations"] == 1
    assert stats["connects"] == 2 * COUNT
    assert stats["replaced"] == {"condemned": COUNT - 1}


def test_a_session_that_loses_its_connection_goes_on_after_a_rollback(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver))
    guard(engine)
    with Session(engine) as session:
        postgres.terminate(session.scalar(PID) or 0)
        with pytest.raises(DBAPIError):
            session.execute(text("select 1"))
        session.rollback()
        assert session.scalar(text("select 1")) == 1


def test_several_that_break_in_use_at_once_are_one_invalidation(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    with engine.connect() as one, engine.connect() as two, engine.connect() as three:
        postgres.terminate(*[connection.scalar(PID) or 0 for connection in (one, two, three)])
        for connection in (one, two, three):
            with pytest.raises(DBAPIError):
                connection.execute(text("select 1"))
    fill(engine, 3)
    stats = pool_guard.stats()
    assert stats["invalidations"] == 1
    assert stats["connects"] == 6


def test_a_commit_that_is_lost_condemns_the_rest(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    old = set(fill(engine, COUNT))
    with engine.connect() as connection:
        postgres.terminate(connection.scalar(PID) or 0)
        with pytest.raises(DBAPIError):
            connection.commit()
    assert not set(fill(engine, COUNT)) & old
    assert pool_guard.stats()["invalidations"] == 1


def test_an_error_that_is_the_statements_own_fault_changes_nothing(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    old = set(fill(engine, COUNT))
    for _ in range(COUNT):
        with engine.connect() as connection, pytest.raises(ProgrammingError):
            connection.execute(text("select nothing from nowhere"))
    assert set(fill(engine, COUNT)) == old
    assert pool_guard.stats()["invalidations"] == 0


def test_handle_error_listeners_of_the_users_run_before_and_after_the_guard(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    class Ours(Exception):
        pass

    heard: list[tuple[str, bool]] = []
    engine = make_engine(postgres.url(driver))
    event.listen(engine, "handle_error", lambda context: heard.append(("before", context.is_disconnect)))
    pool_guard = guard(engine)

    @event.listens_for(engine, "handle_error")
    def translate(context: ExceptionContext) -> Exception:
        heard.append(("after", context.is_disconnect))
        return Ours()

    with engine.connect() as connection:
        postgres.terminate(connection.scalar(PID) or 0)
        with pytest.raises(Ours):
            connection.execute(text("select 1"))
    assert heard == [("before", True), ("after", True)]
    assert failures(engine) == 0
    assert pool_guard.stats()["invalidations"] == 1


def test_an_error_that_only_the_user_knows_as_a_disconnect_condemns_the_rest(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))

    @event.listens_for(engine, "handle_error")
    def divided(context: ExceptionContext) -> None:
        context.is_disconnect = "division by zero" in str(context.original_exception)

    pool_guard = guard(engine)
    old = set(fill(engine, COUNT))
    with engine.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(text("select 1 / 0"))
    assert not set(fill(engine, COUNT)) & old
    assert pool_guard.stats()["invalidations"] == 1


def test_a_failure_to_connect_condemns_nothing(postgres: PostgreSQL, driver: str, make_engine: MakeEngine) -> None:
    engine = make_engine(postgres.url(driver, application_name="x"), pool_size=1, max_overflow=1)
    pool_guard = guard(engine)
    with engine.connect() as connection:

        @event.listens_for(engine, "do_connect")
        def elsewhere(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
            parameters["port"] = 1

        with pytest.raises(OperationalError):
            engine.connect()
        pid = connection.scalar(PID)
    with engine.connect() as connection:
        assert connection.scalar(PID) == pid
    assert pool_guard.stats()["invalidations"] == 0


# Clocks that are set. SQLAlchemy alone compares wall-clock times, and then fails, or reconnects, for nothing.


def test_a_clock_set_back_costs_no_error(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, wall_clock: WallClock
) -> None:
    unguarded = make_engine(postgres.url(driver), pool_size=COUNT)
    guarded = make_engine(postgres.url(driver), pool_size=COUNT)
    pool_guard = guard(guarded)
    postgres.terminate(*fill(unguarded, COUNT), *fill(guarded, COUNT))
    wall_clock.ahead -= 60.0
    assert failures(unguarded) == COUNT
    assert failures(guarded) == 0
    assert failures(guarded) == 0
    assert pool_guard.stats()["connects"] == 2 * COUNT


def test_a_clock_set_back_after_a_failure_in_use_costs_no_error(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, wall_clock: WallClock
) -> None:
    engine = make_engine(postgres.url(driver), pool_size=COUNT)
    pool_guard = guard(engine)
    pids = fill(engine, COUNT)
    wall_clock.ahead -= 60.0
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        postgres.terminate(*pids)
        with pytest.raises(DBAPIError):
            connection.execute(text("select 1"))
    assert failures(engine, 2 * COUNT) == 0
    assert pool_guard.stats()["connects"] == 2 * COUNT


def test_a_clock_that_was_an_hour_ahead_costs_no_reconnects(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, wall_clock: WallClock
) -> None:
    unguarded = make_engine(postgres.url(driver), pool_size=COUNT)
    guarded = make_engine(postgres.url(driver), pool_size=COUNT)
    pool_guard = guard(guarded)
    reconnects: list[Any] = []
    event.listen(unguarded, "connect", lambda connection, entry: reconnects.append(connection))
    pids = fill(unguarded, COUNT), fill(guarded, COUNT)
    wall_clock.ahead += 3600.0
    for engine, backends in zip((unguarded, guarded), pids, strict=True):
        with engine.connect() as connection:
            connection.execute(text("select 1"))
            postgres.terminate(*backends)
            with pytest.raises(DBAPIError):
                connection.execute(text("select 1"))
    wall_clock.ahead = 0.0
    assert failures(unguarded, 4 * COUNT) == 0
    assert len(reconnects) > 3 * COUNT
    assert failures(guarded, 4 * COUNT) == 0
    assert pool_guard.stats()["connects"] == 2 * COUNT


def test_a_clock_that_is_set_retires_nothing_and_keeps_nothing(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, wall_clock: WallClock
) -> None:
    engine = make_engine(postgres.url(driver), pool_size=COUNT)
    pool_guard = guard(engine, max_lifetime=600.0, idle_timeout=60.0)
    fill(engine, COUNT)
    for step in (86400.0, -86400.0, -3600.0):
        wall_clock.ahead += step
        pool_guard.sweep()
        assert failures(engine, 2 * COUNT) == 0
    stats = pool_guard.stats()
    assert (stats["connects"], stats["pings"], stats["retired"]) == (COUNT, 0, 0)
