"""What a child puts on the wire when it lets go of what it inherited, and whether its parent's connections live on.

The scenario (first parameter `forks`) runs in interpreters of its own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.peers import Peer

QUICK = ["mysqlclient"]
TLS = True
KEYS = itertools.count(1)  # of tables
# What says nothing to the server without the guard: psycopg2 and psycopg know that they are in another process, pg8000
# and PyMySQL close the socket without a word when they are collected. The drivers on libmariadb send COM_QUIT, and
# mysql-connector shuts the connection down, for its parent too.
QUIET = ["psycopg2", "psycopg", "pg8000", "pymysql", "mysql-connector"]
SILENT = {driver: {"exit", "dispose(close=False)"} for driver in QUIET}
QUITTING = ["mysqlclient", "mariadb", "mysql-connector"]


def collect(inherited: dict[str, Any]) -> None:
    inherited.clear()
    gc.collect()


def close(inherited: dict[str, Any]) -> None:
    inherited["connection"].detach()
    inherited["connection"].close()


ACTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "exit": lambda inherited: None,
    "collect": collect,
    "close": close,
    "commit": lambda inherited: inherited["connection"].commit(),
    "dispose": lambda inherited: inherited["engine"].dispose(),
    "dispose(close=False)": lambda inherited: inherited["engine"].dispose(close=False),
}


def opened(forks: Forks, url: str, certificate: str | None, sql: str) -> dict[str, Any]:
    """An engine with one connection in its pool, and one that has said `sql` in a transaction; their backends."""
    engine = forks.engine(url, certificate)
    backend = partial(text, forks.sql(engine).backend)
    connection = engine.connect()
    with engine.connect() as idle:
        backends = [each.execute(backend()).scalar() for each in (connection, idle)]
    connection.execute(text(sql))
    return {"engine": engine, "connection": connection, "backend": backend(), "backends": backends}


def used(inherited: dict[str, Any]) -> bool:
    """Whether both connections are still what they were; commits."""
    connection = inherited["connection"]
    with inherited["engine"].connect() as idle:
        backends = [each.execute(inherited["backend"]).scalar() for each in (connection, idle)]
    connection.commit()
    connection.close()
    inherited["engine"].dispose()
    return bool(backends == inherited["backends"])


def letting_go(forks: Forks, url: str, certificate: str | None, table: str, guarded: bool) -> dict[str, Any]:
    """For each act a new parent and a child of it, which does that and comes to the end of the script."""
    if guarded:
        forks.guard()
    forks.engine(url, certificate)  # for the driver: imported here, it is there in all that are forked

    def parent(name: str) -> dict[str, Any]:
        inherited = opened(forks, url, certificate, f"insert into {table} values ('{name}')")
        before = forks.ask("wire")
        failed = forks.child(partial(forks.failure, partial(ACTS[name], inherited)), timeout=60.0)
        after = forks.ask("wire")
        return {
            "failed": failed,
            "bytes": sum(after[number] - count for number, count in before.items()),
            "error": forks.failure(partial(used, inherited)),
            "rows": forks.ask(name),
        }

    return {name: forks.child(partial(parent, name), leave="os._exit", timeout=120.0) for name in ACTS}


@pytest.fixture
def let_go(peer: Peer, scenario: Callable[..., Any]) -> Callable[[bool], Any]:
    from wsgi_dbguard.lab.proxy import FaultProxy

    def run(guarded: bool) -> Any:
        table = f"let_go_{next(KEYS)}"
        query = peer.server.query
        query(f"create table {table} (act text)")

        def answer(question: str) -> Any:
            if question == "wire":
                return {number: sent for number, (sent, _) in proxy.snapshot().items()}
            return query(f"select count(*) from {table} where act = %s", question)[0][0]

        with FaultProxy(peer.server.host, peer.server.port) as proxy:
            return scenario(
                letting_go,
                answer=answer,
                url=peer.url(proxy.port),
                certificate=peer.certificate,
                table=table,
                guarded=guarded,
                timeout=240.0,
            )

    return run


@pytest.mark.slow
def test_without_the_guard_letting_go_ends_the_parents_connections_or_its_transaction(
    let_go: Callable[[bool], Any], peer: Peer
) -> None:
    found = let_go(False)
    assert {name for name, outcome in found.items() if outcome["bytes"]} == set(ACTS) - SILENT.get(peer.driver, set())
    for name, outcome in found.items():
        if peer.driver in QUITTING:
            assert outcome["error"], name
        elif not outcome["bytes"]:
            assert (outcome["error"], outcome["rows"]) == (None, 1), name


def test_whatever_a_child_does_the_parents_connections_live_on(let_go: Callable[[bool], Any]) -> None:
    harmless = {"bytes": 0, "error": None, "rows": 1}
    # By SQLAlchemy's own rules: what was in a transaction says so, until rollback().
    refused = {"close": "InvalidRequestError", "commit": "PendingRollbackError"}
    assert let_go(True) == {name: {"failed": refused.get(name), **harmless} for name in ACTS}
