"""A fault proxy between two bare sockets, and a PostgreSQL behind PgBouncer and HAProxy."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.lab.wire import TIMEOUT


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


@pytest.fixture
def proxy(upstream: socket.socket) -> Iterator[FaultProxy]:
    with FaultProxy(*upstream.getsockname(), record=True) as running:
        yield running


@pytest.fixture
def dial(proxy: FaultProxy) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection((proxy.host, proxy.port), timeout=TIMEOUT))


@pytest.fixture
def answer(upstream: socket.socket) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as stack:

        def accept() -> socket.socket:
            sock = stack.enter_context(upstream.accept()[0])
            sock.settimeout(TIMEOUT)
            return sock

        yield accept


@pytest.fixture
def connect(
    dial: Callable[[], socket.socket], answer: Callable[[], socket.socket]
) -> Callable[[], tuple[socket.socket, socket.socket]]:
    """Both ends of a new connection through the proxy: (client, server)."""
    return lambda: (dial(), answer())


@pytest.fixture(scope="session")
def running() -> Iterator[PostgreSQL]:
    """To be stopped and started, not closed."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def database(running: PostgreSQL) -> PostgreSQL:
    """Without the connections of the test before, whose backends may still be about to end."""
    wait_until(lambda: not running.backends(), timeout=60, what="those of the test before to leave")
    return running
