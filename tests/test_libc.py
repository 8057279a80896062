"""Functions of the C library: called as they are, with the interpreter's lock held."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from wsgi_dbguard import libc, sockets

linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")


@pytest.fixture
def turns() -> Iterator[list[int]]:
    """How often another thread has had the interpreter: at each time that this one has let go of it, and no other."""
    found, done, interval = [0], threading.Event(), sys.getswitchinterval()

    def take_turns() -> None:
        while not done.is_set():
            found[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=take_turns)
    thread.start()
    sys.setswitchinterval(1000.0)
    yield found
    sys.setswitchinterval(interval)
    done.set()
    thread.join()


@linux
def test_a_function_is_found_by_its_name() -> None:
    assert libc.function("getpid")() == os.getpid()


def test_there_is_no_function_of_that_name() -> None:
    assert libc.function("no_such_function") is None


def test_there_is_none_where_python_has_no_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_ctypes", None)
    monkeypatch.setattr(libc, "_library", libc._library.__wrapped__)
    assert libc.function("getpid") is None


@linux
def test_a_look_at_a_socket_lets_no_other_thread_in(turns: list[int]) -> None:
    ours, other = socket.socketpair()
    with ours, other:
        look = sockets.watch(ours.fileno())
        before = turns[0]
        for _ in range(1000):
            look()
        assert turns[0] == before
        until = time.monotonic() + 60.0
        while turns[0] == before and time.monotonic() < until:
            sockets.happened(ours.fileno())  # by Python's own poll
        assert turns[0] > before


@linux
def test_a_function_finds_what_it_is_referred_to() -> None:
    compare = libc.function("strcmp")
    assert compare(libc.reference(b"same\0"), libc.reference(b"same\0")) == 0
    assert compare(libc.reference(b"same\0"), libc.reference(b"other\0")) > 0
