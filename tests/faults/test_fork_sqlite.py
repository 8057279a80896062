"""SQLite: what is in memory belongs to the child as well, a file's connection does not.

The scenarios (first parameter `forks`) run in interpreters of their own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks, Leave

    Scenario = Callable[..., Any]


def in_memory(forks: Forks, urls: list[str]) -> list[Any]:
    """How many rows the child sees in its session and outside it, then the parent; with each URL and pool."""
    forks.guard()
    count = text("select count(*) from t")
    found = []
    for url, pool in itertools.product(urls, (None, StaticPool)):
        engine = create_engine(url, poolclass=pool)
        session = scoped_session(sessionmaker(engine))
        session.execute(text("create table t (n int)"))
        session.execute(text("insert into t values (1)"))
        session.commit()
        session.execute(text("insert into t values (2)"))

        def live(engine: Engine = engine, session: Any = session) -> list[Any]:
            seen = [session.execute(count).scalar()]
            session.execute(text("insert into t values (3)"))
            session.commit()
            session.remove()
            with engine.connect() as connection:
                return [*seen, connection.execute(count).scalar()]

        found.append([*forks.child(live), session.execute(count).scalar()])
        session.execute(text("drop table t"))
        session.commit()
        session.remove()
        engine.dispose()
    return found


def written_file(forks: Forks, path: str, guarded: bool) -> list[Any]:
    """The parent has a write open on a database file with a rollback journal; for each way to leave the child."""
    if guarded:
        forks.guard()
    count = text("select count(*) from t")
    leaves: list[Leave] = ["end", "sys.exit", "os._exit"]
    found = []
    for leave in leaves:
        engine = create_engine(f"sqlite:///{path}.{leave}")
        session = scoped_session(sessionmaker(engine))
        session.execute(text("create table t (n int)"))
        session.commit()
        session.execute(text("insert into t values (1)"))

        def live(engine: Engine = engine, session: Any = session) -> list[Any]:
            lost = forks.failure(lambda: session.execute(count))
            session.remove()
            seen = session.execute(count).scalar()
            session.remove()
            engine.dispose()
            gc.collect()
            return [lost, seen]

        child = forks.child(live, leave=leave)
        error = forks.failure(session.commit)
        session.remove()
        seen = forks.failure(lambda: session.execute(count)) or session.execute(count).scalar()  # noqa: B023
        session.remove()
        engine.dispose()
        found.append({"child": child, "commit": error, "seen": seen})
    return found


def test_data_in_memory_survives_in_the_child(scenario: Scenario) -> None:
    urls = [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:shared?mode=memory&cache=shared&uri=true",
    ]
    assert scenario(in_memory, urls=urls) == [[2, 3, 2]] * 8


def test_a_file_that_is_being_written_is_the_parents_alone(tmp_path: Path, scenario: Scenario) -> None:
    without = scenario(written_file, path=str(tmp_path / "without.db"), guarded=False)
    assert [each["commit"] for each in without] == ["OperationalError"] * 3  # disk I/O error
    healthy = {"child": ["PendingRollbackError", 0], "commit": None, "seen": 1}
    assert scenario(written_file, path=str(tmp_path / "guarded.db"), guarded=True) == [healthy] * 3
