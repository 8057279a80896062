"""Forks at the worst moment: locks held, descriptors exhausted or given away, listeners that raise.

The scenarios (first parameter `forks`) run in interpreters of their own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import psycopg2.extensions
import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import scoped_session, sessionmaker

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.postgres import PostgreSQL

    Scenario = Callable[..., Any]

DRIVERS = ["psycopg2", "psycopg"]
BACKEND = text("select pg_backend_pid()")


def raising_listeners(forks: Forks, urls: list[str]) -> dict[str, Any]:
    """Everything of the user's that runs in after_fork raises."""
    forks.guard()
    from wsgi_dbguard.fork import on_fork

    held = forks.hold(*map(create_engine, urls))
    parent, forking = os.getpid(), [True]

    def fail(*_: object) -> None:
        if forking and os.getpid() != parent:
            raise RuntimeError("a user's listener")

    on_fork(fail)
    for engine in held.engines:
        for name in ("checkin", "invalidate", "close", "close_detached", "detach", "reset", "engine_disposed"):
            event.listen(engine, name, fail)

    def live() -> list[str]:
        forking.clear()
        return held.in_child()

    return {"child": forks.child(live), "parent": held.in_parent()}


def number_given_away(forks: Forks, url: str, path: str) -> dict[str, Any]:
    """The descriptor of a pooled connection was closed behind the pool's back; its number is another file's."""
    forks.guard()
    engine = create_engine(url)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
    fd = driver.fileno()
    driver.close()
    other = os.open(path, os.O_CREAT | os.O_WRONLY)
    if other != fd:
        os.dup2(other, fd)
        os.close(other)

    def live() -> Any:
        os.write(fd, b"to the file")
        with engine.connect() as connection:
            return connection.execute(BACKEND).scalar() is not None

    child = forks.child(live)
    return {"child": child, "file": Path(path).read_text()}


def no_descriptor_left(forks: Forks, urls: list[str]) -> dict[str, Any]:
    """The process is at its limit of open files when it forks."""
    forks.guard()
    held = forks.hold(*map(create_engine, urls))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = os.pipe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (theirs + 20, limits[1]))
    filler: list[int] = []
    with suppress(OSError):
        while True:
            filler.append(os.dup(theirs))
    pid = os.fork()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for fd in filler:
        os.close(fd)
    if not pid:
        try:
            os.write(theirs, repr(held.in_child()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(pid, 0)
    child = os.read(ours, 1000).decode()
    os.close(ours)
    return {"child": child, "parent": held.in_parent()}


class Watched:
    """Mixed into a driver's connection class: notes which process asks for which of its methods."""

    used: list[tuple[int, str, str]] = []

    def __getattribute__(self, name: str) -> Any:
        Watched.used.append((os.getpid(), type(self).__name__, name))
        return super().__getattribute__(name)


class WatchedPsycopg2(Watched, psycopg2.extensions.connection):
    pass


class WatchedPsycopg(Watched, psycopg.Connection[Any]):
    pass


class WatchedSQLite(Watched, sqlite3.Connection):
    pass


def watched_drivers(forks: Forks, address: dict[str, Any], path: str) -> dict[str, Any]:
    """Which methods of its parent's connections a child has called by the time it gets control."""
    forks.guard()
    held = forks.hold(
        create_engine(
            "postgresql+psycopg2://", creator=partial(psycopg2.connect, connection_factory=WatchedPsycopg2, **address)
        ),
        create_engine("postgresql+psycopg://", creator=partial(WatchedPsycopg.connect, **address)),
    )
    engine = create_engine("sqlite:///unused", creator=partial(sqlite3.connect, path, factory=WatchedSQLite))
    session = scoped_session(sessionmaker(engine))
    session.execute(text("create table t (n int)"))
    drivers = sorted({driver for _, driver, _ in Watched.used})

    def live() -> dict[str, Any]:
        used = [name for pid, _, name in Watched.used if pid == os.getpid()]
        lost = forks.failure(lambda: session.execute(text("select 1")))
        session.remove()
        return {"used": used, "lost": lost, "wrong": held.in_child()}

    return {"drivers": drivers, "child": forks.child(live), "parent": held.in_parent()}


def locked_elsewhere(forks: Forks, url: str, lock: str, guarded: bool) -> Any:
    """Another thread of the parent holds a lock of the pool, or of ours, at the moment of the fork."""
    if guarded:
        forks.guard()
    engine = create_engine(url, pool_size=1)
    holding, done = threading.Event(), threading.Event()
    in_connect = lock in ("connecting", "initializing")
    connection = None if in_connect else engine.connect()
    locks: list[Any] = []
    if lock == "guard":
        locks = locks_of_the_guard(engine)
    elif not in_connect:
        pool: Any = engine.pool
        locks = [pool._overflow_lock if lock == "overflow" else pool._pool.mutex]
        if lock == "old pool":
            engine.dispose()

    def hold(*_: object) -> None:
        with ExitStack() as stack:
            for each in locks:
                stack.enter_context(each)
            if threading.current_thread() is thread:
                holding.set()
                done.wait()

    def connect() -> None:
        # SQLAlchemy holds a lock of the pool's events while the first connection is made.
        if lock == "connecting":
            event.listen(engine, "connect", hold)
        else:
            engine.dialect.initialize = hold  # type: ignore[assignment, method-assign]
        engine.connect().close()

    thread = threading.Thread(target=connect if in_connect else hold)
    thread.start()
    assert holding.wait(20)

    def live() -> bool:
        if connection is not None:
            connection.rollback()
            connection.execute(BACKEND)
            connection.close()
        with engine.connect() as first, engine.connect() as second:
            return first.execute(BACKEND).scalar() != second.execute(BACKEND).scalar()

    child = forks.child(live, leave="os._exit", timeout=20 if guarded else 1)
    done.set()
    thread.join(20)
    if connection is not None:
        connection.close()
    return child


def locks_of_the_guard(engine: Engine) -> list[Any]:
    """Those of the guard of one engine, of the modules, and of the watchdog."""
    from wsgi_dbguard import guard, watchdog

    holders = [module for name, module in sys.modules.items() if name.startswith("wsgi_dbguard.")]
    held = {
        id(each): each for holder in (guard(engine), watchdog._watchdog, *holders) for each in vars(holder).values()
    }
    locks = [each for each in held.values() if hasattr(each, "acquire") and each is not watchdog._watchdog.wake]
    assert len(locks) >= 3
    return locks


@pytest.fixture
def urls(postgres: PostgreSQL) -> list[str]:
    return [postgres.url(driver) for driver in DRIVERS]


def test_listeners_that_raise_are_logged_and_cost_nobody_their_protection(
    urls: list[str], tmp_path: Path, scenario: Scenario
) -> None:
    assert scenario(raising_listeners, urls=urls) == {"child": [], "parent": []}
    assert "RuntimeError: a user's listener" in (tmp_path / "stderr").read_text()


def test_a_descriptor_number_that_was_given_to_another_file_is_left_alone(
    tmp_path: Path, postgres: PostgreSQL, scenario: Scenario
) -> None:
    told = scenario(number_given_away, url=postgres.url(), path=str(tmp_path / "file"))
    assert told == {"child": True, "file": "to the file"}


def test_a_process_without_a_descriptor_left_is_cut_off_all_the_same(urls: list[str], scenario: Scenario) -> None:
    assert scenario(no_descriptor_left, urls=urls) == {"child": "[]", "parent": []}


def test_no_method_of_a_driver_is_called_in_the_child(tmp_path: Path, postgres: PostgreSQL, scenario: Scenario) -> None:
    address = {"host": postgres.host, "port": postgres.port, "user": "dbguard", "dbname": "dbguard"}
    assert scenario(watched_drivers, address=address, path=str(tmp_path / "file.db")) == {
        "drivers": ["WatchedPsycopg", "WatchedPsycopg2", "WatchedSQLite"],
        "child": {"used": [], "lost": "PendingRollbackError", "wrong": []},
        "parent": [],
    }


@pytest.mark.parametrize("lock", ["queue", "overflow", "old pool", "connecting", "initializing"])
def test_a_lock_that_another_thread_held_at_the_fork_does_not_hang_the_child(
    lock: str, postgres: PostgreSQL, tmp_path: Path, scenario: Scenario
) -> None:
    without = scenario(locked_elsewhere, url=postgres.url(), lock=lock, guarded=False)
    assert "hung" in without["failed"]
    assert scenario(locked_elsewhere, url=postgres.url(), lock=lock, guarded=True) is True
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_locks_of_the_guard_itself_do_not_hang_the_child(postgres: PostgreSQL, scenario: Scenario) -> None:
    assert scenario(locked_elsewhere, url=postgres.url(), lock="guard", guarded=True) is True
