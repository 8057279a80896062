"""The check at checkout: exactly once, never on a fresh connection, a ping only when there is a reason."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable
from time import monotonic
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import SingletonThreadPool

from wsgi_dbguard import guard, sockets
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.proxy import FaultProxy

from .backends import pid_of

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]


class Clock:
    """The guard's clock, which can be put forward."""

    ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("wsgi_dbguard.checkout.monotonic", clock)
    monkeypatch.setattr("wsgi_dbguard.pool.monotonic", clock)
    monkeypatch.setattr("wsgi_dbguard.link.time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that were polled by the guard, one for each time."""
    polled: list[int] = []
    watch = sockets.watch

    def counting(fd: int) -> sockets.Look:
        look = watch(fd)

        def counted() -> int:
            polled.append(fd)
            return look()

        return counted

    monkeypatch.setattr(sockets, "watch", counting)
    return polled


def descriptor(connection: Connection) -> int:
    return int(connection.connection.dbapi_connection.fileno())  # type: ignore[union-attr]


def arrives(fd: int) -> bool:
    return bool(select.select([fd], [], [], 60.0)[0])


def test_a_checkout_of_a_healthy_connection_is_one_poll_and_no_ping(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, polls: list[int]
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    for checkouts in range(1, 6):
        with engine.connect() as connection, connection.begin():
            for _ in range(3):
                connection.execute(text("select 1"))
        assert len(polls) == checkouts
    assert pool_guard.stats()["checkouts"] == 5
    assert pool_guard.stats()["pings"] == 0


def test_with_ping_after_zero_each_checkout_but_the_first_pings_once(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, ping_after=0.0)
    for _ in range(5):
        fill(engine, 3)
    assert pool_guard.stats()["checkouts"] == 15
    assert pool_guard.stats()["pings"] == 15 - 3


def test_idle_for_longer_than_ping_after_is_one_ping(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, clock: Clock
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, ping_after=3000.0, idle_timeout=None, max_lifetime=None)
    pid = pid_of(engine)
    clock.ahead += 2900.0
    assert pid_of(engine) == pid
    assert pool_guard.stats()["pings"] == 0
    clock.ahead += 3001.0
    assert [pid_of(engine) for _ in range(3)] == [pid] * 3
    assert pool_guard.stats()["pings"] == 1


def test_a_silently_lost_connection_that_is_idle_for_long_is_replaced(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, clock: Clock
) -> None:
    """A firewall has forgotten it: the socket shows nothing, so the ping must."""
    with FaultProxy(postgres.host, postgres.port) as proxy:
        engine = make_engine(postgres.url_through(proxy.host, proxy.port, driver))
        pool_guard = guard(engine, ping_timeout=0.2)
        pid = pid_of(engine)
        proxy.blackhole()
        clock.ahead += 61.0

        @event.listens_for(engine, "do_connect")
        def heal(*_: Any) -> None:
            proxy.up()

        assert pid_of(engine) != pid
        assert pool_guard.stats()["replaced"] == {"ping": 1}
        assert pool_guard.stats()["invalidations"] == 1


# Fresh connections


def when_connected(engine: Engine, act: Callable[[Any], object]) -> None:
    """Calls `act` with each new DBAPI connection, before it is checked out. The dialect has had its first look."""
    engine.connect().close()
    engine.dispose()
    event.listen(engine, "connect", lambda connection, entry: act(connection))


def test_a_fresh_connection_that_the_server_closes_at_once_is_handed_out_and_fails_as_itself(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    """To condemn it too would end in "This connection is closed", with nothing said of the server."""
    with FaultProxy(postgres.host, postgres.port) as proxy:
        engine = make_engine(postgres.url_through(proxy.host, proxy.port, driver))
        pool_guard = guard(engine, ping_after=0.0)

        def close(connection: Any) -> None:
            proxy.fin()
            assert arrives(connection.fileno())

        when_connected(engine, close)
        before = pool_guard.stats()
        for attempt in (1, 2, 3):
            with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
                connection.execute(text("select 1"))
            assert caught.value.connection_invalidated
            stats = pool_guard.stats()
            assert stats["connects"] == before["connects"] + attempt
            assert stats["replaced"] == {}
            assert stats["pings"] == before["pings"]


def test_a_fresh_connection_with_unread_input_is_handed_out_unasked(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    def listen(connection: Any) -> None:
        connection.cursor().execute("listen fresh")
        connection.commit()
        postgres.query("notify fresh")
        assert arrives(connection.fileno())

    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    when_connected(engine, listen)
    with engine.connect() as connection:
        assert arrives(descriptor(connection))
        pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    assert pool_guard.stats()["pings"] == 0
    assert pid_of(engine) == pid  # nobody has read it yet: that is a reason to ask
    assert pid_of(engine) == pid
    assert pool_guard.stats()["pings"] == 1
    assert pool_guard.stats()["replaced"] == {}


def test_a_notification_is_a_reason_for_one_ping_and_not_for_a_new_connection(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine)
    with engine.begin() as connection:
        connection.execute(text("listen news"))
        fd, pid = descriptor(connection), connection.scalar(text("select pg_backend_pid()"))
    for pings in (1, 2, 3):
        postgres.query("notify news")
        assert arrives(fd)
        assert [pid_of(engine) for _ in range(3)] == [pid] * 3
        assert pool_guard.stats()["pings"] == pings
    assert pool_guard.stats()["replaced"] == {}


# Age and idleness


def test_connections_opened_together_do_not_expire_together(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill, clock: Clock
) -> None:
    engine = make_engine(postgres.url(driver), pool_size=40)
    pool_guard = guard(engine, max_lifetime=1000.0, idle_timeout=None, ping_after=10000.0)
    first = set(fill(engine, 40))
    clock.ahead = 800.0  # the first jitter is at 900, and time goes on meanwhile
    assert set(fill(engine, 40)) == first
    clock.ahead = 950.0
    assert 0 < len(set(fill(engine, 40)) & first) < 40
    clock.ahead = 1001.0
    assert not set(fill(engine, 40)) & first
    stats = pool_guard.stats()
    assert stats["connects"] == 80
    assert stats["replaced"].get("max_lifetime", 0) + stats["retired"] == 40  # housekeeping may have been first
    assert stats["invalidations"] == 0


def test_a_connection_that_was_idle_for_too_long_is_replaced(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, clock: Clock
) -> None:
    engine = make_engine(postgres.url(driver), poolclass=SingletonThreadPool)  # housekeeping leaves that alone
    pool_guard = guard(engine, idle_timeout=100.0)
    pid = pid_of(engine)
    clock.ahead += 50.0
    assert pid_of(engine) == pid
    clock.ahead += 101.0
    assert pid_of(engine) != pid
    assert pool_guard.stats()["replaced"] == {"idle_timeout": 1}


def test_with_none_neither_age_nor_idleness_matters(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, clock: Clock
) -> None:
    engine = make_engine(postgres.url(driver))
    pool_guard = guard(engine, idle_timeout=None, max_lifetime=None)
    pid = pid_of(engine)
    clock.ahead += 10 * 365 * 86400.0
    assert pid_of(engine) == pid
    assert pool_guard.stats()["pings"] == 1


# Drivers that hide their socket


class Hidden(psycopg2.extensions.connection):
    fileno = None  # type: ignore[assignment]


def test_a_driver_that_does_not_tell_its_socket_is_checked_by_ping_and_this_is_said_once(
    postgres: PostgreSQL, make_engine: MakeEngine, fill: Fill, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(postgres.url(), connect_args={"connection_factory": Hidden})
    pool_guard = guard(engine)
    pids = fill(engine, 3)
    messages = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 1
    assert "does not tell its socket" in messages[0]
    postgres.terminate(*pids)
    assert not set(fill(engine, 3)) & set(pids)
    assert pool_guard.stats()["replaced"] == {"ping": 1, "condemned": 2}
