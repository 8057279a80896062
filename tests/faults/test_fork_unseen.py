"""Forks that Python does not see, as uWSGI's: no at-fork handler runs, the pid checks are the net.

The scenarios (first parameter `forks`) run in interpreters of their own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.peers import Peer

    Scenario = Callable[..., Any]

OURS = r'File ".*/wsgi_dbguard/\w+\.py"'  # in a traceback; PyMySQL has its own when it collects an inherited stream
QUICK = ["psycopg2"]


def shared(forks: Forks, url: str) -> bool:
    """Without the guard: whether the child works on its parent's connection."""
    engine = create_engine(url)
    sql = text(forks.sql(engine).backend)

    def backend() -> Any:
        with engine.connect() as connection:
            return connection.execute(sql).scalar()

    parent = backend()
    return bool(forks.child(backend, by="libc") == parent)


def noticed(forks: Forks, urls: list[str], by: str) -> dict[str, Any]:
    forks.guard()
    from wsgi_dbguard import DBGuard, guard

    held = forks.hold(*map(create_engine, urls))
    first, *_ = held.engines
    sql = text(forks.sql(first).backend)
    guarding = guard(first)

    def backend() -> Any:
        with first.connect() as connection:
            return connection.execute(sql).scalar()

    def application(environ: Any, start_response: Any) -> list[bytes]:
        return [str(backend()).encode()]

    def live() -> dict[str, Any]:
        if by == "request":
            environ: Any = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
            own = {int(body) for body in DBGuard(application, first)(environ, lambda *_: print)}
        else:
            own = {backend()}
        return {
            "shared": sorted(own & held.backends),
            "replaced": guarding.stats()["replaced"],
            "child": held.in_child(),
        }

    return {**forks.child(live, by="libc"), "parent": held.in_parent()}


def two_threads(forks: Forks) -> Any:
    """Two first requests at once, in a child that has not noticed yet; the first one has a slow callback to run."""
    forks.guard()
    from wsgi_dbguard.fork import after_fork, on_fork

    order = []

    def second() -> None:
        after_fork()
        order.append("the second thread goes on")

    def callback() -> None:
        thread.start()
        thread.join(0.2)  # a lock that is not there lets it through long before
        order.append("the parent is cut off")

    thread = threading.Thread(target=second)
    on_fork(callback)

    def live() -> list[str]:
        after_fork()
        thread.join(20)
        return order

    return forks.child(live, by="libc", leave="os._exit")


def own_connections(forks: Forks, urls: list[str]) -> dict[str, Any]:
    """The child opens a connection before anything of ours notices that it is a child."""
    forks.guard()
    from wsgi_dbguard import after_fork

    held = forks.hold(*map(create_engine, urls))
    engine = create_engine(urls[0])
    sql = text(forks.sql(engine).backend)

    def live() -> dict[str, Any]:
        with engine.connect() as connection:
            before = connection.execute(sql).scalar()
            after_fork()
            return {"kept": connection.execute(sql).scalar() == before, "child": held.in_child()}

    return {**forks.child(live, by="libc"), "parent": held.in_parent()}


@pytest.fixture
def urls(peer: Peer) -> list[str]:
    """One for each driver of a database, that of the parameter first."""
    from wsgi_dbguard.lab.drivers import DRIVERS, driver_named

    database = driver_named(peer.driver).database
    others = sorted(each.name for each in DRIVERS if each.database == database and not each.missing())
    server = peer.server
    return [
        peer.url(),
        *(server.url_through(server.host, server.port, each) for each in others if each != peer.driver),
    ]


@pytest.mark.slow
def test_without_the_guard_the_child_works_on_its_parents_connection(urls: list[str], scenario: Scenario) -> None:
    assert scenario(shared, url=urls[0]) is True


@pytest.mark.parametrize(("by", "replaced"), [("checkout", {"forked": 1}), ("request", {})])
def test_the_next_checkout_and_the_next_request_notice(
    by: str, replaced: dict[str, int], urls: list[str], tmp_path: Path, scenario: Scenario
) -> None:
    told = scenario(noticed, urls=urls, by=by)
    assert told == {"shared": [], "replaced": replaced, "child": [], "parent": []}
    assert not re.search(OURS, (tmp_path / "stderr").read_text())


def test_no_thread_goes_on_before_the_child_is_cut_off(scenario: Scenario) -> None:
    told = scenario(two_threads)
    assert told == ["the parent is cut off", "the second thread goes on"]


def test_what_the_child_opened_before_it_was_noticed_is_its_own(urls: list[str], scenario: Scenario) -> None:
    assert scenario(own_connections, urls=urls) == {"kept": True, "child": [], "parent": []}
