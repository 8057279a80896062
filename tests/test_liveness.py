"""A ping says no within its deadline, whatever became of the server, on every driver; and a yes leaves no trace."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.pool import PoolProxiedConnection

from wsgi_dbguard import guard, sockets
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.link import KEY, Link
from wsgi_dbguard.liveness import ping
from wsgi_dbguard.watchdog import Deadline

MakeEngine = Callable[..., Engine]
IDLE = 0  # libpq's PQTRANS_IDLE


@pytest.fixture
def proxy(postgres: PostgreSQL) -> Iterator[FaultProxy]:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def victim() -> Iterator[PostgreSQL]:
    """A server to be paused."""
    with PostgreSQL() as server:
        yield server


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def pinged(connection: PoolProxiedConnection, engine: Engine, timeout: float) -> bool:
    return ping(engine.dialect, connection.dbapi_connection, connection.info[KEY], timeout)


def readable(connection: PoolProxiedConnection) -> None:
    fd = connection.info[KEY].fd
    assert select.select([fd], [], [], 60.0)[0]


def test_a_healthy_connection_answers_and_stays_as_it_was(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver))
    with contextlib.closing(engine.raw_connection()) as connection:
        assert all(pinged(connection, engine, 60.0) for _ in range(20))
        assert connection.dbapi_connection.info.transaction_status == IDLE  # type: ignore[union-attr]
        connection.cursor().execute("select 1")


def test_a_notification_that_waits_is_read_by_the_ping(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver))
    with contextlib.closing(engine.raw_connection()) as connection:
        connection.cursor().execute("listen liveness")
        connection.commit()
        for _ in range(3):
            postgres.query("notify liveness")
            readable(connection)
            assert pinged(connection, engine, 60.0)
            assert sockets.happened(connection.info[KEY].fd) == 0


def test_a_terminated_connection_is_a_no_and_no_error(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url(driver))
    with contextlib.closing(engine.raw_connection()) as connection:
        postgres.terminate(connection.dbapi_connection.info.backend_pid)  # type: ignore[union-attr]
        assert not pinged(connection, engine, 5.0)
        connection.invalidate()


def test_behind_a_network_that_swallows_everything_a_ping_ends_in_time(
    proxy: FaultProxy, postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(postgres.url_through(proxy.host, proxy.port, driver))
    with contextlib.closing(engine.raw_connection()) as connection:
        assert pinged(connection, engine, 60.0)
        proxy.blackhole()
        before, start = threads(), time.monotonic()
        assert not pinged(connection, engine, 0.3)
        assert 0.3 <= time.monotonic() - start < 30.0  # without a deadline it would wait for ever
        wait_until(lambda: threads() <= before, timeout=60.0, what="the end of the watchdog's thread")
        connection.invalidate()


def test_on_a_server_that_stands_still_a_ping_ends_in_time(
    victim: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(victim.url(driver))
    with contextlib.closing(engine.raw_connection()) as connection:
        victim.pause()
        try:
            start = time.monotonic()
            assert not pinged(connection, engine, 0.3)
            assert 0.3 <= time.monotonic() - start < 30.0
        finally:
            victim.resume()
        connection.invalidate()


def test_a_late_answer_is_a_no(proxy: FaultProxy, postgres: PostgreSQL, driver: str, make_engine: MakeEngine) -> None:
    engine = make_engine(postgres.url_through(proxy.host, proxy.port, driver))
    with contextlib.closing(engine.raw_connection()) as connection:
        proxy.delay(30.0)
        assert not pinged(connection, engine, 0.2)
        connection.invalidate()
        proxy.delay(0.0)


def test_pings_of_many_threads_end_each_in_its_own_time(
    proxy: FaultProxy, postgres: PostgreSQL, driver: str, make_engine: MakeEngine
) -> None:
    count = 20
    engine = make_engine(postgres.url_through(proxy.host, proxy.port, driver), pool_size=count)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(contextlib.closing(engine.raw_connection())) for _ in range(count)]
        proxy.blackhole()
        before = threads()
        together = threading.Barrier(count)

        def timed(number: int) -> float:
            timeout = 0.2 + 0.05 * number
            together.wait(60.0)
            start = time.monotonic()
            assert not pinged(connections[number], engine, timeout)
            return time.monotonic() - start - timeout

        with ThreadPoolExecutor(count) as pool:
            late = list(pool.map(timed, range(count)))
        assert min(late) >= 0
        assert max(late) < 30.0
        wait_until(lambda: threads() <= before, timeout=60.0, what="the end of the watchdog's thread")
        for connection in connections:
            connection.invalidate()


def redirect(engine: Engine, address: tuple[str, int], before: Callable[[], object] = lambda: None) -> None:
    """From now on `engine` connects to `address`."""

    @event.listens_for(engine, "do_connect")
    def do_connect(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        before()
        parameters["host"], parameters["port"] = address


@pytest.mark.parametrize("fault", ["blackhole", "pause"])
def test_a_checkout_is_bounded_by_the_ping_timeout(
    victim: PostgreSQL, driver: str, make_engine: MakeEngine, fault: str
) -> None:
    """And the whole pool is pinged once, not one connection after the other."""
    with FaultProxy(victim.host, victim.port) as proxy:
        engine = make_engine(victim.url_through(proxy.host, proxy.port, driver))
        pool_guard = guard(engine, ping_after=0.0, ping_timeout=0.3)
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(contextlib.closing(engine.raw_connection()))
        before = threads()
        if fault == "blackhole":
            proxy.blackhole()
            redirect(engine, (victim.host, victim.port))
        else:
            victim.pause()
            redirect(engine, (victim.host, victim.port), before=victim.resume)
        start = time.monotonic()
        for _ in range(5):
            engine.raw_connection().close()
        assert 0.3 <= time.monotonic() - start < 30.0
        wait_until(lambda: threads() <= before, timeout=60.0, what="the end of the watchdog's thread")
        assert pool_guard.stats()["replaced"] == {"ping": 1, "condemned": 4}
        assert pool_guard.stats()["invalidations"] == 1


# What no real server can be made to do


class Connection:
    """A DBAPI connection that is a socket, and nothing else."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()


class Dialect:
    name = "none"

    def __init__(self, do_ping: Callable[[Any], Any]) -> None:
        self.do_ping = do_ping


def linked(sock: socket.socket) -> tuple[Connection, Link]:
    connection = Connection(sock)
    return connection, Link(connection, None, opened_at="here", gone=lambda link: None)


@pytest.mark.parametrize("answer", [False, None, ValueError("not an error of the driver's"), OSError(9, "closed")])
def test_anything_but_a_yes_is_a_no(answer: Any) -> None:
    def do_ping(connection: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    ours, other = socket.socketpair()
    with ours, other:
        connection, link = linked(ours)
        assert not ping(Dialect(do_ping), connection, link, 5.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_passes_through_and_the_connection_is_not_cut_later(interrupt: type[BaseException]) -> None:
    def do_ping(connection: Any) -> Any:
        raise interrupt

    ours, other = socket.socketpair()
    with ours, other:
        connection, link = linked(ours)
        with pytest.raises(interrupt):
            ping(Dialect(do_ping), connection, link, 0.5)  # type: ignore[arg-type]
        with Deadline(0.6, lambda: None) as later:
            wait_until(lambda: later.expired, timeout=60.0, what="a later deadline")
        ours.sendall(b"untouched")
        assert other.recv(100) == b"untouched"


def test_a_descriptor_that_changed_hands_during_the_ping_is_not_cut() -> None:
    """The driver met an error and closed its socket; another thread's new connection got the number."""
    ours, other = socket.socketpair()
    theirs, far = socket.socketpair()
    with ours, other, theirs, far:
        connection, link = linked(ours)

        def do_ping(connection: Any) -> bool:
            os.dup2(theirs.fileno(), ours.fileno())
            time.sleep(0.2)  # past the deadline
            return False

        assert not ping(Dialect(do_ping), connection, link, 0.05)  # type: ignore[arg-type]
        theirs.sendall(b"untouched")
        assert far.recv(100) == b"untouched"
