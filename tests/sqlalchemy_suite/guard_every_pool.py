"""A pytest plugin: every engine, and every pool that has no engine, is guarded. For SQLAlchemy's own tests, see run.py.

Most of SQLAlchemy's pool tests make pools of mock connections without an engine, which the guard does not know in
earnest. Here each gets an engine that nobody uses when its first connection is opened, so that it is guarded as well.
The tests run in a checkout of their own, so this is loaded by name: ``python -m pytest -p guard_every_pool``.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import NonCallableMock

import pytest
from sqlalchemy import Engine, event, make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.pool.base import _ConnDialect

from wsgi_dbguard import GuardConfig, PoolGuard, checkout, guard, link, registry, sockets
from wsgi_dbguard.guards import guard_all, guards

kept: set[PoolGuard] = set()  # else they go with their engines, and their counts with them


class _MockDialect(DefaultDialect):
    name = "mock"


def _keep(engine: Engine) -> None:
    kept.update(guards())


def _new_connection(connection: Any, entry: ConnectionPoolEntry) -> None:
    pool: Pool = entry._ConnectionRecord__pool  # type: ignore[attr-defined]
    # This very class: what a pool has that no engine was made for. Its subclass stands for an event loop's.
    if type(pool._dialect) is not _ConnDialect:
        return
    # Not by a mark on the pool: `recreate()` makes another one that has the listeners already.
    if not any(isinstance(getattr(listener, "__self__", None), PoolGuard) for listener in pool.dispatch.connect):
        engine = Engine(pool, _MockDialect(), make_url("mock://"))
        guard(engine)
        _keep(engine)


def _listen() -> None:
    """Some tests clear all listeners of the class `Pool` behind them. Listening twice is listening once."""
    event.listen(Pool, "connect", registry.link_of)
    event.listen(Pool, "close", registry._closed)
    event.listen(Pool, "connect", _new_connection)
    checkout.listen()


def _fileno(connection: Any) -> int | None:
    """A mock would record that it was asked, and tests compare what was called: so mocks are not asked."""
    return None if isinstance(connection, NonCallableMock) else fileno(connection)


def _server_id(connection: Any) -> int | None:
    return None if isinstance(connection, NonCallableMock) else server_id(connection)


fileno, server_id = sockets.fileno, link._server_id


def pytest_configure() -> None:
    sockets.fileno, link._server_id = _fileno, _server_id
    link._unwatched = lambda: 0  # nor are they pinged at each checkout, as a driver without a socket is
    # One test compares the arguments of connect(), where the guard would put its limit.
    guard_all(GuardConfig(connect_timeout=None))
    registry.on_engine(_keep)


def pytest_runtest_setup() -> None:
    _listen()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"guarded checkouts: {sum(each.stats()['checkouts'] for each in kept)}")
