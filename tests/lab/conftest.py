"""A fault proxy between two bare sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

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
