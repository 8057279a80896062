"""Forks at the worst moment: locks held, descriptors exhausted or given away, listeners that raise.

The scenarios (first parameter `forks`) run in interpreters of their own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy.pool
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.pool import QueuePool

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.mariadb import MariaDB
    from wsgi_dbguard.lab.peers import Peer
    from wsgi_dbguard.lab.postgres import PostgreSQL

    Scenario = Callable[..., Any]

QUICK = ["psycopg2"]
BACKEND = text("select pg_backend_pid()")


def raising_listeners(forks: Forks, url: str) -> dict[str, Any]:
    """Everything of the user's that runs in after_fork raises."""
    forks.guard()
    from wsgi_dbguard.fork import on_fork

    held = forks.hold(create_engine(url))
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
    from wsgi_dbguard.sockets import fileno

    engine = create_engine(url)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
    fd = fileno(driver)
    assert fd is not None
    driver.close()
    other = os.open(path, os.O_CREAT | os.O_WRONLY)
    if other != fd:
        os.dup2(other, fd)
        os.close(other)

    def live() -> Any:
        os.write(fd, b"to the file")
        with engine.connect() as connection:
            return connection.execute(text(forks.sql(engine).backend)).scalar() is not None

    child = forks.child(live)
    return {"child": child, "file": Path(path).read_text()}


def no_descriptor_left(forks: Forks, url: str) -> dict[str, Any]:
    """The process is at its limit of open files when it forks."""
    forks.guard()
    held = forks.hold(create_engine(url))
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


def place_of_another_thread(forks: Forks, url: str, opening: bool) -> Any:
    """The pool has one place, and another thread has it: with a connection, or while it opens one."""
    forks.guard()
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0)
    parent, holding, forked = os.getpid(), threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        if os.getpid() == parent:
            holding.set()
            forked.wait()

    def connect() -> None:
        with engine.connect():
            hold()

    if opening:
        event.listen(engine, "do_connect", hold)
    thread = threading.Thread(target=connect)
    thread.start()
    assert holding.wait(20)
    child = forks.child(lambda: forks.failure(lambda: engine.connect().close()), leave="os._exit")
    forked.set()
    thread.join(20)
    engine.dispose()
    return child


def first_connection_elsewhere(forks: Forks, url: str, pool: str) -> Any:
    """Another thread is opening the engine's first connection, and the dialect is asking the server what it is."""
    forks.guard()
    engine = create_engine(url, poolclass=getattr(sqlalchemy.pool, pool))
    parent, asking, forked = os.getpid(), threading.Event(), threading.Event()
    once: list[int] = []
    initialize = engine.dialect.initialize

    def ask(connection: Any) -> None:
        if os.getpid() == parent:
            asking.set()
            forked.wait()
        initialize(connection)

    engine.dialect.initialize = ask  # type: ignore[method-assign]
    event.listen(engine, "connect", lambda *_: once.append(os.getpid()), once=True, insert=True)
    thread = threading.Thread(target=lambda: engine.connect().close())
    thread.start()
    assert asking.wait(20)

    def live() -> list[Any]:
        for _ in range(2):
            with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
                connection.execute(BACKEND)
        return [engine.dialect.server_version_info is not None, len(once)]

    child = forks.child(live, leave="os._exit")
    forked.set()
    thread.join(20)
    return {"child": child, "parent": live()}


def pool_of_a_users_own(forks: Forks, url: str) -> dict[str, Any]:
    """Its class has an `__eq__`, so it has no hash."""
    forks.guard()

    class Own(QueuePool):
        def __eq__(self, other: object) -> bool:
            return self is other

    held = forks.hold(create_engine(url, poolclass=Own))
    return {"child": forks.child(held.in_child), "parent": held.in_parent()}


def thread_local(forks: Forks, url: str, detached: bool, guarded: bool) -> dict[str, Any]:
    """A thread keeps its connection in thread-local storage, which a child of another thread does not inherit."""
    if guarded:
        forks.guard()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("create temporary table if not exists kept (n int)"))
    storage = threading.local()
    holding, forked = threading.Event(), threading.Event()
    rows: list[Any] = []

    def keep() -> None:
        storage.connection = engine.raw_connection()
        if detached:
            storage.connection.detach()
        storage.connection.cursor().execute("insert into kept values (1)")
        holding.set()
        forked.wait()
        storage.connection.commit()
        cursor = storage.connection.cursor()
        cursor.execute("select count(*) from kept")
        rows.extend(cursor.fetchone())
        storage.connection.rollback()
        storage.connection.close()

    thread = threading.Thread(target=keep)
    thread.start()
    assert holding.wait(20)
    child = forks.child(lambda: None, leave="os._exit")
    forked.set()
    thread.join(20)
    return {"child": child, "rows": rows}


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


def test_listeners_that_raise_are_logged_and_cost_nobody_their_protection(
    peer: Peer, tmp_path: Path, scenario: Scenario
) -> None:
    assert scenario(raising_listeners, url=peer.url()) == {"child": [], "parent": []}
    assert "RuntimeError: a user's listener" in (tmp_path / "stderr").read_text()


def test_a_pool_of_a_users_own_costs_nobody_the_protection(peer: Peer, tmp_path: Path, scenario: Scenario) -> None:
    assert scenario(pool_of_a_users_own, url=peer.url()) == {"child": [], "parent": []}
    assert "unhashable" not in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("opening", [False, True], ids=["with a connection", "opening one"])
def test_a_place_that_another_thread_had_is_free_in_the_child(
    opening: bool, postgres: PostgreSQL, scenario: Scenario
) -> None:
    assert scenario(place_of_another_thread, url=postgres.url(), opening=opening) is None


@pytest.mark.parametrize("pool", ["QueuePool", "NullPool"])
def test_a_child_knows_its_server_though_another_thread_was_asking_at_the_fork(
    pool: str, postgres: PostgreSQL, scenario: Scenario
) -> None:
    """SQLAlchemy asks once, when the first connection is opened; the child has no such thread that would finish."""
    told = scenario(first_connection_elsewhere, url=postgres.url(), pool=pool)
    assert told == {"child": [True, 1], "parent": [True, 1]}


def test_a_descriptor_number_that_was_given_to_another_file_is_left_alone(
    tmp_path: Path, peer: Peer, scenario: Scenario
) -> None:
    told = scenario(number_given_away, url=peer.url(), path=str(tmp_path / "file"))
    assert told == {"child": True, "file": "to the file"}


def test_a_process_without_a_descriptor_left_is_cut_off_all_the_same(peer: Peer, scenario: Scenario) -> None:
    assert scenario(no_descriptor_left, url=peer.url()) == {"child": "[]", "parent": []}


def test_what_another_thread_keeps_in_its_own_storage_is_not_rolled_back(
    postgres: PostgreSQL, scenario: Scenario
) -> None:
    without = scenario(thread_local, url=postgres.url(), detached=False, guarded=False)
    assert without == {"child": None, "rows": [0]}
    assert scenario(thread_local, url=postgres.url(), detached=False, guarded=True) == {"child": None, "rows": [1]}


def test_what_another_thread_keeps_detached_is_not_closed(mariadb: MariaDB, scenario: Scenario) -> None:
    pytest.importorskip("MySQLdb")  # it says goodbye when it is collected
    told = scenario(thread_local, url=mariadb.url("mysqldb"), detached=True, guarded=True)
    assert told == {"child": None, "rows": [1]}


# The locks are those of SQLAlchemy's pools and of the guard: the same for every driver.
LOCKS = ["overflow", "old pool", "connecting", "initializing"]


@pytest.mark.parametrize("lock", ["queue", *(pytest.param(each, marks=pytest.mark.slow) for each in LOCKS)])
def test_a_lock_that_another_thread_held_at_the_fork_does_not_hang_the_child(
    lock: str, postgres: PostgreSQL, tmp_path: Path, scenario: Scenario
) -> None:
    without = scenario(locked_elsewhere, url=postgres.url(), lock=lock, guarded=False)
    assert "hung" in without["failed"]
    assert scenario(locked_elsewhere, url=postgres.url(), lock=lock, guarded=True) is True
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_locks_of_the_guard_itself_do_not_hang_the_child(postgres: PostgreSQL, scenario: Scenario) -> None:
    assert scenario(locked_elsewhere, url=postgres.url(), lock="guard", guarded=True) is True
