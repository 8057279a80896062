"""What a child does with what it inherited, what it finds, and what it says.

The scenarios (first parameter `forks`) run in interpreters of their own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.postgres import PostgreSQL

    Scenario = Callable[..., Any]

DRIVERS = ["psycopg2", "psycopg"]
BACKEND = text("select pg_backend_pid()")
EACH_DRIVER = pytest.mark.parametrize("driver", ["psycopg2", pytest.param("psycopg", marks=pytest.mark.slow)])
SHARING = ["QueuePool", "StaticPool", "SingletonThreadPool", "AssertionPool"]


def operations(forks: Forks, url: str, guarded: bool) -> dict[str, Any]:
    """A child does one thing, while its parent has a row that is not committed; each time with another table."""
    if guarded:
        forks.guard()
    observer = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    found = {}
    for operation in ("commit", "rollback", "remove", "dispose"):
        name = f"{operation}_{os.getpid()}"
        count = text(f"select count(*) from {name}")
        with observer.connect() as watching:
            watching.execute(text(f"create table {name} (n int)"))
            engine = create_engine(url)
            session = scoped_session(sessionmaker(engine))
            session.execute(text(f"insert into {name} values (1)"))
            with engine.connect():
                pass
            does: Any = engine if operation == "dispose" else session
            child = forks.child(partial(forks.failure, getattr(does, operation)), leave="os._exit")
            before = watching.execute(count).scalar()
            error = forks.failure(session.commit)
            after = watching.execute(count).scalar()
        with engine.connect() as idle:  # the first one in the queue
            dead = forks.failure(partial(idle.execute, BACKEND))
        engine.dispose()
        found[operation] = {"child": child, "seen before": before, "commit": error, "seen after": after, "idle": dead}
    return found


def held_connections(forks: Forks, urls: list[str], late: bool) -> dict[str, Any]:
    """The package is imported before connections are opened, or after; with all objects frozen."""
    if not late:
        forks.guard()
    held = forks.hold(*map(create_engine, urls))
    if late:
        forks.guard()
    gc.freeze()

    def live() -> list[str]:
        return held.in_child() if gc.get_freeze_count() else ["nothing is frozen any more"]

    return {"child": forks.child(live), "parent": held.in_parent()}


def detached_alone(forks: Forks, url: str) -> Any:
    """What a child's connection says that is the parent's, is detached, and has nothing beside it in use."""
    forks.guard()
    connection = create_engine(url).connect()
    connection.detach()

    def closed_for_the_child() -> bool:
        return connection.invalidated

    return forks.child(closed_for_the_child)


def every_pool(forks: Forks, url: str, guarded: bool) -> list[str]:
    """The kinds of pools with which a child works on its parent's connection."""
    if guarded:
        forks.guard()

    def backend(engine: Engine) -> Any:
        with engine.connect() as connection:
            return connection.execute(BACKEND).scalar()

    def is_shared(engine: Engine, parents: Any) -> bool:
        return bool(forks.child(partial(backend, engine), leave="os._exit") == parents)

    shared = []
    for pool in (QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool):
        engine = create_engine(url, poolclass=pool)
        parents = backend(engine)
        optioned = engine.execution_options(isolation_level="AUTOCOMMIT")
        options = {engine: "", optioned: " with options"}
        shared += [pool.__name__ + name for each, name in options.items() if is_shared(each, parents)]
        assert pool is NullPool or backend(engine) == parents
        engine.dispose()
    return shared


def two_generations(forks: Forks, urls: list[str]) -> dict[str, Any]:
    """A child that opens connections forks in its turn."""
    forks.guard()
    held = forks.hold(*map(create_engine, urls))

    def live() -> dict[str, Any]:
        before = held.in_child()
        own = forks.hold(*held.engines)

        def live() -> list[str]:
            return own.in_child() + [
                f"{pid} is the parent's" for pid in forks.hold(*held.engines).backends & held.backends
            ]

        return {"child": before, "grandchild": forks.child(live), "child, later": own.in_parent()}

    return {**forks.child(live), "parent": held.in_parent()}


def again_and_again(forks: Forks, urls: list[str]) -> dict[str, Any]:
    """after_fork() in the parent, and more than once in the child; returns where it did anything."""
    forks.guard()
    from wsgi_dbguard import after_fork

    held = forks.hold(*map(create_engine, urls))

    def touched() -> bool:
        pools = [engine.pool for engine in held.engines]
        connections = [engine.connect() for engine in held.engines]
        backends = [connection.execute(BACKEND).scalar() for connection in connections]
        after_fork()
        same = backends == [connection.execute(BACKEND).scalar() for connection in connections]
        for connection in connections:
            connection.close()
        return not same or pools != [engine.pool for engine in held.engines]

    parent = touched()
    child = forks.child(lambda: [touched(), *held.in_child()])
    return {"parent": [parent, *held.in_parent()], "child": child}


def capacity(forks: Forks, url: str, size: int) -> dict[str, Any]:
    """How many connections a child of a parent that has several idle ones opens: one after the other, and at once."""
    forks.guard()
    engine = create_engine(url, pool_size=size, max_overflow=1, pool_timeout=0)
    most = size + 1 if size else 4  # 0 is no limit

    def at_once() -> int:
        with ExitStack() as stack:
            taken: list[Any] = []
            while len(taken) < most + bool(size) and not forks.failure(lambda: taken.append(engine.connect())):
                stack.enter_context(taken[-1])
            return len({connection.execute(BACKEND).scalar() for connection in taken})

    def one_by_one() -> int:
        backends = set()
        for _ in range(2 * most):
            with engine.connect() as connection:
                backends.add(connection.execute(BACKEND).scalar())
        return len(backends)

    def live() -> list[int]:
        return [one_by_one(), at_once(), at_once()]

    at_once()
    return {"child": forks.child(live), "parent": at_once(), "grandchild": forks.child(lambda: forks.child(live))}


def pid_of_the_parent(forks: Forks, urls: list[str]) -> dict[str, Any]:
    """A child in a PID namespace of its own may have its parent's pid, and a grandchild too."""
    forks.guard()
    pid = os.getpid()
    os.getpid = lambda: pid  # what the kernel tells there
    held = forks.hold(*map(create_engine, urls))

    def live() -> dict[str, Any]:
        before = held.in_child()
        own = forks.hold(*held.engines)
        return {"child": before, "grandchild": forks.child(own.in_child), "child, later": own.in_parent()}

    return {**forks.child(live), "parent": held.in_parent()}


@contextmanager
def told() -> Iterator[list[str]]:
    """What the package logs and warns of, as "LEVEL message" and "Category file:line message"."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(f"{record.levelname} {record.getMessage()}")

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        messages.append(f"{category.__name__} {filename}:{lineno} {message}")

    handler = Handler()
    logging.getLogger("wsgi_dbguard").addHandler(handler)
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield messages
    logging.getLogger("wsgi_dbguard").removeHandler(handler)


def warned_children(forks: Forks, path: str) -> list[Any]:
    """What each of three children of one parent says, then a child and its own two children."""
    forks.guard()
    engine = create_engine(f"sqlite:///{path}")
    with told() as messages:
        engine.connect().close()  # this line
        three = [forks.child(lambda: messages) for _ in range(3)]

        def live() -> list[Any]:
            engine.connect().close()  # and this line
            return [forks.child(lambda: messages) for _ in range(2)]

        return [*three, *forks.child(live), messages]


def silent_parent(forks: Forks, path: str) -> Any:
    """What a child finds when warnings are errors."""
    forks.guard()
    engine = create_engine(f"sqlite:///{path}")
    parents = driver_connection(engine)
    return forks.child(lambda: driver_connection(engine) is not parents)


def driver_connection(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.connection.driver_connection


def programs(forks: Forks, url: str, directory: str, gevent: bool) -> dict[str, Any]:
    """The start of another program, in a fork that Python sees: with a preexec_fn, or under gevent."""
    if gevent:
        from gevent import monkey

        monkey.patch_all()
    forks.guard()
    engine = create_engine(url)
    raw = engine.raw_connection()
    raw.cursor().execute("create temporary table started (n int)")
    pool = engine.pool
    said, found = Path(directory, "said"), Path(directory, "found")

    def prepare() -> None:  # in the child, after the handlers
        said.write_text("\n".join([*messages, *([] if engine.pool is pool else ["more was done than is needed"])]))
        forks.failure(raw.rollback)
        found.write_text(str(forks.failure(lambda: engine.connect().execute(BACKEND))))

    with told() as messages:
        subprocess.run(["true"], check=True, preexec_fn=prepare)
    error = forks.failure(partial(raw.cursor().execute, "insert into started values (1)"))
    return {"said": said.read_text(), "in the child": found.read_text(), "in the parent": error}


@pytest.fixture
def urls(postgres: PostgreSQL) -> list[str]:
    return [postgres.url(driver) for driver in DRIVERS]


@EACH_DRIVER
def test_what_a_child_does_to_its_session_and_engine_is_its_own_affair(
    driver: str, postgres: PostgreSQL, scenario: Scenario
) -> None:
    harmless = {"child": None, "seen before": 0, "commit": None, "seen after": 1, "idle": None}
    # The parent's commit() does not even fail: its libpq knows nothing of the child's commit or rollback.
    assert scenario(operations, url=postgres.url(driver), guarded=False) == {
        "commit": {**harmless, "seen before": 1},
        "rollback": {**harmless, "seen after": 0},
        "remove": {**harmless, "seen after": 0},
        "dispose": {**harmless, "idle": "OperationalError"},
    }
    assert scenario(operations, url=postgres.url(driver), guarded=True) == {
        "commit": {**harmless, "child": "PendingRollbackError"},
        "rollback": harmless,
        "remove": harmless,
        "dispose": harmless,
    }


@pytest.mark.parametrize("late", [False, True], ids=["guard first", "connections first"])
def test_whoever_holds_a_connection_of_the_parent_gets_one_of_the_childs(
    late: bool, urls: list[str], scenario: Scenario
) -> None:
    assert scenario(held_connections, urls=urls, late=late) == {"child": [], "parent": []}


@EACH_DRIVER
def test_a_detached_connection_is_taken_away_though_its_pool_is_idle(
    driver: str, postgres: PostgreSQL, scenario: Scenario
) -> None:
    assert scenario(detached_alone, url=postgres.url(driver)) is True


@EACH_DRIVER
def test_a_child_shares_no_connection_whatever_the_pool(driver: str, postgres: PostgreSQL, scenario: Scenario) -> None:
    pools = [f"{name}{options}" for name in SHARING for options in ("", " with options")]
    assert scenario(every_pool, url=postgres.url(driver), guarded=False) == pools
    assert scenario(every_pool, url=postgres.url(driver), guarded=True) == []


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_childs_pool_opens_what_it_needs_and_no_more_than_it_may(
    size: int, postgres: PostgreSQL, scenario: Scenario
) -> None:
    most = size + 1 if size else 4
    told = scenario(capacity, url=postgres.url(), size=size)
    assert told == {"child": [1, most, most], "parent": most, "grandchild": [1, most, most]}


def test_grandchildren_leave_their_parents_and_grandparents_connections_alone(
    urls: list[str], scenario: Scenario
) -> None:
    told = scenario(two_generations, urls=urls)
    assert told == {"child": [], "grandchild": [], "child, later": [], "parent": []}


def test_nor_does_the_same_pid_make_them_the_same_process(urls: list[str], scenario: Scenario) -> None:
    found = scenario(pid_of_the_parent, urls=urls)
    assert found == {"child": [], "grandchild": [], "child, later": [], "parent": []}


def test_after_fork_again_or_without_a_fork_does_nothing(urls: list[str], scenario: Scenario) -> None:
    assert scenario(again_and_again, urls=urls) == {"parent": [False], "child": [False]}


def place(function: Callable[..., Any], marker: str) -> str:
    lines, first = inspect.getsourcelines(function)
    (line,) = [number for number, line in enumerate(lines, first) if marker in line]
    return f"{__file__}:{line} "


def test_one_child_of_each_parent_warns_and_names_the_line_that_opened(tmp_path: Path, scenario: Scenario) -> None:
    one, *others, grandchild, second_grandchild, parent = scenario(warned_children, path=str(tmp_path / "file.db"))
    assert [each.split()[0] for each in one] == ["WARNING", "ForkWarning"]
    assert all(place(warned_children, "# this line") in each for each in one)
    assert [others, second_grandchild, parent] == [[[], []], [], []]
    assert [each.split()[0] for each in grandchild] == ["WARNING", "ForkWarning"]
    assert all(place(warned_children, "# and this line") in each for each in grandchild)


@pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])
def test_the_start_of_a_program_is_nothing_to_warn_of_and_leaves_the_connections_alone(
    gevent: bool, postgres: PostgreSQL, tmp_path: Path, scenario: Scenario
) -> None:
    told = scenario(programs, url=postgres.url(), directory=str(tmp_path), gevent=gevent)
    assert told == {"said": "", "in the child": "None", "in the parent": None}


def test_warnings_as_errors_do_not_break_the_child(tmp_path: Path, scenario: Scenario) -> None:
    assert scenario(silent_parent, options=["-X", "dev", "-W", "error"], path=str(tmp_path / "file.db")) is True
    stderr = (tmp_path / "stderr").read_text()
    assert stderr.count("connection(s) were open") == 1  # logged
    assert "Traceback" not in stderr


def test_a_pool_without_the_private_names_is_not_renewed() -> None:
    from wsgi_dbguard import fork

    pool = create_engine("postgresql://").pool
    pool._pool = object()  # type: ignore[attr-defined]
    assert not fork._renew(pool)
