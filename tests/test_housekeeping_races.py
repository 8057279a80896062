"""Housekeeping meets a checkout, in each order there is; and nobody ever meets a connection that it has closed."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, Engine, event, exc, text
from sqlalchemy.pool import Pool, base

from wsgi_dbguard import PoolGuard, guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

from .backends import PID, pid_of, retired

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]
PAST = 0.005  # seconds; longer than the limits of a thousandth


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
        time.sleep(PAST)
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
        time.sleep(PAST)
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
        time.sleep(PAST)
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

    for module in ("checkout", "pool"):
        monkeypatch.setattr(f"wsgi_dbguard.{module}.monotonic", lambda: time.monotonic() + ahead[0])
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
    """Also one that is in front of the guard's own."""

    def use(connection: Any, entry: Any, proxy: Any) -> None:
        connection.cursor().execute("set application_name = 'used'")

    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=0.1)
    event.listen(Pool, "checkout", use, insert=True)
    try:
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
    threads, rounds = 8, 120
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
