"""The kernel's count of what was written to a socket: each byte, by whoever wrote it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from wsgi_dbguard.written import counter

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def tcp() -> Iterator[Pair]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with ours, other:
        yield ours, other


@pytest.fixture
def count(tcp: Pair) -> Callable[[], int | None]:
    found = counter(tcp[0].fileno())
    assert found is not None
    return found


def test_each_byte_that_is_written_counts(tcp: Pair, count: Callable[[], int | None]) -> None:
    written = 0
    assert count() == 0
    for size in (1, 100, 10_000):
        tcp[0].sendall(b"x" * size)
        written += size
        assert count() == written


def test_what_is_read_does_not(tcp: Pair, count: Callable[[], int | None]) -> None:
    ours, other = tcp
    other.sendall(b"x" * 1000)
    assert ours.recv(1000)
    assert count() == 0


def test_what_waits_to_be_sent_counts_as_well(tcp: Pair, count: Callable[[], int | None]) -> None:
    """Nobody reads: buffers fill, and what is written last is not sent for now."""
    ours, _ = tcp
    ours.setblocking(False)
    written = 0
    with suppress(BlockingIOError):
        while True:
            written += ours.send(b"x" * 65536)
    told = count()
    assert told is not None
    assert told >= written  # more, where something was sent again


def test_what_another_process_writes_counts(tcp: Pair, count: Callable[[], int | None]) -> None:
    child = os.fork()
    if child == 0:
        os.write(tcp[0].fileno(), b"hello")
        os._exit(0)
    os.waitpid(child, 0)
    assert count() == 5


def test_with_a_closed_descriptor_there_is_no_count(tcp: Pair, count: Callable[[], int | None]) -> None:
    tcp[0].close()
    assert count() is None


def test_a_unix_socket_is_not_counted() -> None:
    ours, other = socket.socketpair()
    with ours, other:
        assert counter(ours.fileno()) is None


def test_a_socket_of_several_connections_is_not_counted() -> None:
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"no MPTCP: {error}")
    with sock:
        assert counter(sock.fileno()) is None


def test_what_is_no_socket_is_not_counted(tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "file"), "w") as file:
        assert counter(file.fileno()) is None
    assert counter(file_descriptor_of_nobody()) is None


def file_descriptor_of_nobody() -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    return fd
