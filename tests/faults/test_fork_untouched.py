"""No method of a driver is called in a child: drivers' locks may be held for ever by threads that are not there.

The scenario (first parameter `forks`) runs in interpreters of its own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.peers import Peer

    Scenario = Callable[..., Any]

QUICK = ["psycopg2", "mysqlclient"]
# Where a driver has its class of connections.
CLASSES = {
    "psycopg2": ("psycopg2.extensions", "connection"),
    "psycopg": ("psycopg", "Connection"),
    "pg8000": ("pg8000", "Connection"),
    "pymysql": ("pymysql.connections", "Connection"),
    "mysqlclient": ("MySQLdb.connections", "Connection"),
    "mariadb": ("mariadb", "Connection"),
}
PEERS = list(CLASSES)


class Watched:
    """Mixed into a driver's connection class: notes which process asks for which of its methods."""

    used: list[tuple[int, str]] = []

    def __getattribute__(self, name: str) -> Any:
        Watched.used.append((os.getpid(), name))
        return super().__getattribute__(name)


def watched(driver: str, host: str, port: int, name: str) -> Callable[[], Any]:
    """Opens a connection of a watched subclass; `name`: of user and database."""
    module, base = CLASSES[driver]
    cls: Any = type("WatchedConnection", (Watched, getattr(import_module(module), base)), {})
    address = {"host": host, "port": port, "user": name}
    if driver == "psycopg2":
        return partial(import_module(driver).connect, connection_factory=cls, dbname=name, **address)
    return (
        partial(cls.connect, dbname=name, **address) if driver == "psycopg" else partial(cls, database=name, **address)
    )


def untouched(forks: Forks, url: str, driver: str, host: str, port: int, name: str) -> dict[str, Any]:
    """Which methods of its parent's connections a child has called by the time it gets control."""
    forks.guard()
    held = forks.hold(create_engine(url, creator=watched(driver, host, port, name)))
    seen = bool(Watched.used)

    def live() -> dict[str, Any]:
        used = [name for pid, name in Watched.used if pid == os.getpid()]
        return {"used": used, "wrong": held.in_child()}

    return {"seen": seen, "child": forks.child(live), "parent": held.in_parent()}


class WatchedSQLite(Watched, sqlite3.Connection):
    pass


def untouched_file(forks: Forks, path: str) -> dict[str, Any]:
    """The same for SQLite's."""
    forks.guard()
    engine = create_engine("sqlite:///unused", creator=partial(sqlite3.connect, path, factory=WatchedSQLite))
    session = scoped_session(sessionmaker(engine))
    session.execute(text("create table t (n int)"))
    seen = bool(Watched.used)

    def live() -> dict[str, Any]:
        used = [name for pid, name in Watched.used if pid == os.getpid()]
        lost = forks.failure(lambda: session.execute(text("select 1")))
        session.remove()
        return {"used": used, "lost": lost}

    return {"seen": seen, "child": forks.child(live)}


def test_no_method_of_a_driver_is_called_in_the_child(peer: Peer, scenario: Scenario) -> None:
    from wsgi_dbguard.lab.server import NAME

    address = {"host": peer.server.host, "port": peer.server.port, "name": NAME}
    told = scenario(untouched, url=peer.url(), driver=peer.driver, **address)
    assert told == {"seen": True, "child": {"used": [], "wrong": []}, "parent": []}


def test_no_method_of_sqlite_is_called_in_the_child(tmp_path: Any, scenario: Scenario) -> None:
    told = scenario(untouched_file, path=str(tmp_path / "file.db"))
    assert told == {"seen": True, "child": {"used": [], "lost": "PendingRollbackError"}}
