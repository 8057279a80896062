"""What tests of the breaker share: a clock set by hand, a database that is up or not, and callers in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest

from wsgi_dbguard import GuardConfig
from wsgi_dbguard import breaker as module
from wsgi_dbguard.breaker import Breaker
from wsgi_dbguard.lab.process import wait_until


class Clock:
    """`time.monotonic`, set by hand: for tests in which nobody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Database:
    """Opens numbered connections while it is up; counts the attempts."""

    def __init__(self) -> None:
        self.up = True
        self.error: BaseException = psycopg2.OperationalError("Connection reset")
        self.attempts = 0
        self.gate = threading.Event()  # an attempt ends when it is set
        self.gate.set()
        self.lock = threading.Lock()

    def __call__(self) -> int:
        with self.lock:
            self.attempts += 1
            number = self.attempts
        self.gate.wait(60.0)
        if not self.up:
            raise self.error
        return number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def crowd() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a function in a thread of its own."""
    with ThreadPoolExecutor(32) as threads:
        yield threads.submit


def until(condition: Callable[[], bool]) -> None:
    wait_until(condition, timeout=60.0, what="the callers")


def breaker(**settings: Any) -> Breaker:
    return Breaker("the pool", GuardConfig(**settings))


def fail(breaker: Breaker, database: Database) -> None:
    database.up = False
    with pytest.raises(psycopg2.OperationalError):
        breaker.connect(database)
    assert breaker.away
