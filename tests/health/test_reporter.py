"""The thread begins and ends, and writes no more than it has to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from wsgi_dbguard import worker
from wsgi_dbguard.health import reporter as module
from wsgi_dbguard.health import snapshot
from wsgi_dbguard.health.readiness import Readiness
from wsgi_dbguard.health.reporter import Reporter
from wsgi_dbguard.lab.process import wait_until

NAME = "wsgi_dbguard.health"


class Guard:
    requests = 3


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that shares nothing, and what it would have written."""
    made = Reporter()
    written: list[dict[str, Any]] = []
    made.written = written  # type: ignore[attr-defined]
    monkeypatch.setattr(made._share, "write", written.append)
    yield made
    made.end()


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == NAME]


def test_it_begins_when_the_process_serves_and_ends_with_it(reporter: Any) -> None:
    guard = Guard()
    reporter.install(guard, Readiness(list))
    assert threads() == []  # it may be a master that only forks
    worker.serving()
    worker.serving()
    assert threads() == [NAME]
    assert reporter.workers()[0]["requests"] == 3
    reporter.end()
    wait_until(lambda: threads() == [], timeout=30, what="its end")
    count = len(reporter.written)
    reporter.workers()
    assert len(reporter.written) == count


def test_it_writes_once_a_second_at_most_and_what_is_the_same_every_five(
    reporter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"pools": [], "requests": 1}
    monkeypatch.setattr(snapshot, "describe", lambda requests: dict(told))
    reporter.running = True
    seen = []
    for now in (100.0, 100.5, 101.0, 102.0, 104.9, 105.0, 105.5, 106.0):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda now=now: now))
        if now == 105.5:
            told["requests"] = 2
        reporter.workers()
        seen.append(len(reporter.written))
    assert seen == [1, 1, 1, 1, 1, 2, 2, 3]


def test_a_forked_child_has_no_thread_and_no_file_until_it_serves(run_python: Callable[..., str]) -> None:
    program = """
import os, threading, warnings
from sqlalchemy import create_engine
from wsgi_dbguard import DBGuard, worker
from wsgi_dbguard.health.reporter import reporter

warnings.simplefilter("ignore", DeprecationWarning)  # a thread of ours is no reason not to fork, see `fork`
guard = DBGuard(lambda environ, start_response: [], create_engine("sqlite://"), health="/-/db")
worker.serving()
reporter.workers()
child = os.fork()
if child == 0:
    before = reporter.running, reporter._share._slot
    worker.serving()
    both = {each["pid"] for each in reporter.workers()} == {os.getpid(), os.getppid()}  # as uWSGI's without a master
    os.write(1, repr((before, reporter.running, both)).encode())
    reporter.end()
    os._exit(0)
os.waitpid(child, 0)
reporter.end()
"""
    assert run_python(program) == "((False, None), True, True)"
