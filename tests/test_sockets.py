"""Below the driver: a descriptor is found, watched, tuned and cut without a byte read or written."""

from __future__ import annotations

import os
import select
import socket
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator

import psycopg2
import pytest
from sqlalchemy import Engine

from wsgi_dbguard import guard, sockets
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

Pair = tuple[socket.socket, socket.socket]
OPTIONS = {
    "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "count": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "user_timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
}


@pytest.fixture
def tcp() -> Iterator[Pair]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with ours, other:
        yield ours, other


@pytest.fixture
def unix() -> Iterator[Pair]:
    ours, other = socket.socketpair()
    with ours, other:
        yield ours, other


@pytest.fixture(params=[None, 5.0])
def default_timeout(request: pytest.FixtureRequest) -> Iterator[float | None]:
    """What some applications set for all sockets of the process: socket.setdefaulttimeout(5)."""
    socket.setdefaulttimeout(request.param)
    yield request.param
    socket.setdefaulttimeout(None)


def options(fd: int) -> dict[str, int]:
    """The TCP options of a descriptor, read over a duplicate of it."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return {name: sock.getsockopt(*option) for name, option in OPTIONS.items()}


def pooled(engine: Engine) -> int:
    """The descriptor of a connection that has been in the pool."""
    with engine.connect() as connection:
        return int(connection.connection.dbapi_connection.fileno())  # type: ignore[union-attr]


def happens(fd: int) -> int:
    """Waits until something shows: the event bits."""
    wait_until(sockets.watch(fd), timeout=60.0, what="an event")
    return sockets.happened(fd)


# tune


def test_keepalive_and_user_timeout_are_set_on_a_tcp_socket(tcp: Pair) -> None:
    sockets.tune(tcp[0].fileno(), keepalive=(15, 5, 3), user_timeout=30.0)
    assert options(tcp[0].fileno()) == {"keepalive": 1, "idle": 15, "interval": 5, "count": 3, "user_timeout": 30000}


def test_none_leaves_what_is_set(tcp: Pair) -> None:
    before = options(tcp[0].fileno())
    sockets.tune(tcp[0].fileno(), keepalive=None, user_timeout=None)
    assert options(tcp[0].fileno()) == before
    sockets.tune(tcp[0].fileno(), keepalive=None, user_timeout=1.5)
    assert options(tcp[0].fileno()) == {**before, "user_timeout": 1500}
    sockets.tune(tcp[0].fileno(), keepalive=(9, 8, 7), user_timeout=None)
    assert options(tcp[0].fileno()) == {
        "keepalive": 1,
        "idle": 9,
        "interval": 8,
        "count": 7,
        "user_timeout": 1500,
    }


@pytest.mark.parametrize(("keepalive", "user_timeout"), [((1, 1, 1), 0.001), ((32767, 32767, 127), 2147483.0)])
def test_the_kernel_takes_what_the_configuration_allows(
    tcp: Pair, keepalive: tuple[int, int, int], user_timeout: float
) -> None:
    sockets.tune(tcp[0].fileno(), keepalive=keepalive, user_timeout=user_timeout)
    values = options(tcp[0].fileno())
    assert (values["idle"], values["interval"], values["count"]) == keepalive
    assert values["user_timeout"] == user_timeout * 1000


def test_a_unix_socket_is_left_alone(unix: Pair) -> None:
    sockets.tune(unix[0].fileno(), keepalive=(15, 5, 3), user_timeout=30.0)
    assert unix[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_a_closed_descriptor_is_no_error() -> None:
    sock = socket.socket()
    fd = sock.detach()
    os.close(fd)
    sockets.tune(fd, keepalive=(15, 5, 3), user_timeout=30.0)
    sockets.cut(fd)
    sockets.cut(None)
    assert not sockets.is_tcp(fd)
    assert sockets.identity(fd) is None


@pytest.mark.parametrize("blocking", [True, False])
def test_a_socket_stays_blocking_or_not(tcp: Pair, blocking: bool, default_timeout: float | None) -> None:
    fd = tcp[0].fileno()
    os.set_blocking(fd, blocking)
    sockets.tune(fd, keepalive=(15, 5, 3), user_timeout=30.0)
    assert os.get_blocking(fd) is blocking
    assert sockets.is_tcp(fd)
    assert os.get_blocking(fd) is blocking
    sockets.cut(fd)
    assert os.get_blocking(fd) is blocking


# The same on the sockets of real connections


def test_a_pooled_connection_is_tuned(postgres: PostgreSQL, driver: str, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(postgres.url(driver))
    guard(engine, keepalive=(31, 7, 4), user_timeout=12.5)
    assert options(pooled(engine)) == {"keepalive": 1, "idle": 31, "interval": 7, "count": 4, "user_timeout": 12500}


def test_a_connection_opened_before_the_guard_is_tuned_at_its_checkout(
    postgres: PostgreSQL, driver: str, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(postgres.url(driver))
    pooled(engine)
    guard(engine, user_timeout=12.5)
    assert options(pooled(engine))["user_timeout"] == 12500


def test_with_none_a_pooled_connection_is_as_its_driver_made_it(
    postgres: PostgreSQL, driver: str, make_engine: Callable[..., Engine]
) -> None:
    unguarded, guarded = make_engine(postgres.url(driver)), make_engine(postgres.url(driver))
    guard(guarded, keepalive=None, user_timeout=None)
    assert options(pooled(guarded)) == options(pooled(unguarded))


def test_a_connection_over_a_unix_socket_works_untouched(
    postgres: PostgreSQL, driver: str, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(postgres.url_through(postgres.socket_directory, postgres.port, driver))
    guard(engine)
    with socket.socket(fileno=os.dup(pooled(engine))) as sock:
        assert sock.family == socket.AF_UNIX
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_libpq_sockets_stay_as_blocking_as_without_the_guard(
    postgres: PostgreSQL, driver: str, make_engine: Callable[..., Engine], default_timeout: float | None
) -> None:
    unguarded, guarded = make_engine(postgres.url(driver)), make_engine(postgres.url(driver))
    guard(guarded, ping_after=0.0)
    for _ in range(2):
        assert os.get_blocking(pooled(guarded)) is os.get_blocking(pooled(unguarded))


# fileno, identity


def test_where_there_is_no_socket_there_is_no_descriptor(postgres: PostgreSQL) -> None:
    connection = sqlite3.connect(":memory:")
    assert sockets.fileno(connection) is None
    connection.close()
    closed = psycopg2.connect(postgres.url().replace("+psycopg2", ""))
    assert sockets.fileno(closed) == closed.fileno()
    closed.close()
    assert sockets.fileno(closed) is None
    assert sockets.fileno(object()) is None


def test_identity_tells_whether_a_number_was_given_to_something_else(tcp: Pair, unix: Pair) -> None:
    fd = os.dup(tcp[0].fileno())
    before = sockets.identity(fd)
    assert before == sockets.identity(tcp[0].fileno())
    os.dup2(unix[0].fileno(), fd)
    assert sockets.identity(fd) not in (None, before)
    os.close(fd)


# watch


def test_nothing_happened_shows_nothing(tcp: Pair) -> None:
    assert sockets.watch(tcp[0].fileno())() == 0
    assert sockets.happened(tcp[0].fileno()) == 0


def test_without_the_system_s_own_poll_it_looks_by_python_s(tcp: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_dbguard.libc.function", lambda name: None)
    look = sockets.watch(tcp[0].fileno())
    assert look() == 0
    tcp[1].sendall(b"n")
    assert wait_until(look, timeout=60.0, what="an event") & sockets.SUSPECT


def test_bytes_that_arrive_are_a_suspicion(tcp: Pair) -> None:
    look = sockets.watch(tcp[0].fileno())
    tcp[1].sendall(b"n")
    assert happens(tcp[0].fileno()) & sockets.SUSPECT
    assert not happens(tcp[0].fileno()) & sockets.DEAD
    assert tcp[0].recv(1) == b"n"  # not read by the poll
    assert look() == 0


@pytest.mark.parametrize("last_words", [b"", b"FATAL: terminating connection"])
def test_a_fin_is_death_also_behind_unread_bytes(tcp: Pair, last_words: bytes) -> None:
    tcp[1].sendall(last_words)
    tcp[1].shutdown(socket.SHUT_WR)
    assert wait_until(lambda: happens(tcp[0].fileno()) & sockets.DEAD, timeout=60.0, what="death")


def test_a_reset_is_death(tcp: Pair) -> None:
    tcp[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp[1].close()
    assert happens(tcp[0].fileno()) & sockets.DEAD


def test_a_descriptor_that_was_closed_is_death(tcp: Pair) -> None:
    fd = tcp[0].fileno()
    tcp[0].close()
    assert happens(fd) & sockets.DEAD


# cut, replace


def test_cutting_wakes_a_thread_that_waits_in_the_socket(tcp: Pair) -> None:
    tcp[0].settimeout(None)
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(tcp[0].recv(1)))
    thread.start()
    sockets.cut(tcp[0].fileno())
    thread.join(60.0)
    assert received == [b""]
    assert tcp[0].fileno() >= 0  # still open
    assert tcp[1].recv(1) == b""  # the peer knows


def test_a_dead_end_reads_as_the_end_and_takes_no_byte() -> None:
    with socket.socket(fileno=sockets.dead_end()) as end:
        assert end.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            end.send(b"x")
        assert sockets.happened(end.fileno()) & select.POLLHUP


def test_a_descriptor_is_replaced_and_its_other_holders_keep_theirs(tcp: Pair) -> None:
    kept = tcp[0].dup()
    end = sockets.dead_end()
    sockets.replace(tcp[0].fileno(), by=end)
    os.close(end)
    assert tcp[0].recv(1) == b""
    assert not os.get_inheritable(tcp[0].fileno())
    with kept:
        kept.sendall(b"still here")
        assert tcp[1].recv(100) == b"still here"
