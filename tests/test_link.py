from __future__ import annotations

import gc
import inspect
import os
import re
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.link import KEY, Link

MakeEngine = Callable[..., Engine]


def link_of(connection: Any) -> Link:
    link: Link = connection.connection.info[KEY]
    return link


def here(marker: str, function: Callable[..., Any]) -> str:
    lines, first = inspect.getsourcelines(function)
    (line,) = [number for number, line in enumerate(lines, first) if marker in line]
    return f"{__file__}:{line} in "


def nobody(link: Link) -> None:
    pytest.fail(f"{link} is gone")


def test_it_names_the_line_of_the_application_however_the_connection_was_opened(make_engine: MakeEngine) -> None:
    def by_engine() -> str:
        with make_engine("sqlite://").connect() as connection:  # engine
            return link_of(connection).opened_at

    def by_session() -> str:
        with Session(make_engine("sqlite://")) as session:
            return link_of(session.connection()).opened_at  # session

    name = f"{inspect.currentframe().f_code.co_qualname}.<locals>."  # type: ignore[union-attr]
    assert by_engine() == here("# engine", by_engine) + f"{name}by_engine"
    assert by_session() == here("# session", by_session) + f"{name}by_session"


def test_it_names_a_line_when_a_thread_has_no_code_of_the_application(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/file.db")
    held: list[Any] = []
    thread = threading.Thread(target=lambda: None)
    thread.run = lambda: held.append(engine.connect())  # type: ignore[method-assign]
    thread.start()
    thread.join()
    assert link_of(held[0]).opened_at.startswith(__file__)
    held[0].close()


def test_the_descriptor_is_the_drivers_own(make_engine: MakeEngine, postgres: PostgreSQL, driver: str) -> None:
    with make_engine(postgres.url(driver)).connect() as connection:
        link = link_of(connection)
        fd = connection.connection.driver_connection.fileno()  # type: ignore[union-attr]
        status = os.fstat(fd)
        assert (link.fd, link.identity) == (fd, (status.st_dev, status.st_ino))
        assert link.pid == os.getpid()
        assert not link.in_memory


def test_a_program_that_is_started_does_not_get_the_connection(make_engine: MakeEngine, mariadb: MariaDB) -> None:
    pytest.importorskip("MySQLdb")  # mysqlclient would give it
    with make_engine(mariadb.url("mysqldb")).connect() as connection:
        identity = link_of(connection).identity
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as program:
            given = [(each.stat().st_dev, each.stat().st_ino) for each in Path(f"/proc/{program.pid}/fd").iterdir()]
    assert given
    assert identity not in given


def test_in_use_follows_the_connection_through_checkout_checkin_and_detach(
    make_engine: MakeEngine, postgres: PostgreSQL, driver: str
) -> None:
    engine = make_engine(postgres.url(driver), pool_size=1)
    with engine.connect() as connection:
        link = link_of(connection)
        assert link.in_use
    assert not link.in_use
    with engine.connect() as connection:
        assert link_of(connection) is link
        connection.detach()
        assert link.in_use
        with engine.connect() as other:  # takes the pool entry over
            assert link_of(other) is not link
            assert link.in_use
        assert link.in_use


def test_knowing_a_connection_does_not_keep_it(postgres: PostgreSQL) -> None:
    gone: list[Link] = []
    connection = psycopg2.connect(postgres.url("psycopg2").replace("+psycopg2", ""))
    link = Link(connection, None, gone=gone.append)
    assert link.connection() is connection
    connection.close()
    del connection
    gc.collect()
    assert gone == [link]
    assert link.connection() is None


def test_a_connection_that_cannot_be_referred_to_weakly_is_found_by_its_entry(make_engine: MakeEngine) -> None:
    engine = make_engine("sqlite://")
    gone: list[Link] = []
    with engine.connect() as connection:
        entry = connection.connection._connection_record
        link = Link(entry.dbapi_connection, entry, gone=gone.append)
        assert link.connection() is entry.dbapi_connection
    engine.dispose()
    assert link.connection() is None
    assert gone == []
    del entry, connection
    gc.collect()
    assert gone == [link]


def test_it_may_have_no_entry_at_all() -> None:
    connection = sqlite3.connect(":memory:")
    link = Link(connection, None, gone=nobody)
    assert link.entry() is None
    assert link.in_use
    connection.close()


@pytest.mark.parametrize(
    ("database", "in_memory"),
    [
        (":memory:", True),
        ("", True),
        ("file::memory:?cache=shared", True),
        ("file:some?mode=memory&cache=shared", True),
        ("file:{}/file.db", False),
        ("{}/file.db", False),
    ],
)
def test_it_tells_a_sqlite_database_in_memory_from_a_file(database: str, in_memory: bool, tmp_path: Path) -> None:
    connection = sqlite3.connect(database.format(tmp_path), uri=database.startswith("file:"))
    connection.row_factory = sqlite3.Row
    link = Link(connection, None, gone=nobody)
    assert link.in_memory is in_memory
    assert link.fd is None
    assert not connection.in_transaction
    connection.close()


def test_a_file_that_cannot_be_read_yet_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "encrypted.db"
    path.write_bytes(b"no database " * 100)
    connection = sqlite3.connect(path)
    assert not Link(connection, None, gone=nobody).in_memory
    connection.close()


def test_it_tells_what_it_is(make_engine: MakeEngine) -> None:
    with make_engine("sqlite://").connect() as connection:
        assert re.match(r"<Link fd=None age=\d+\.", repr(link_of(connection)))
        assert __file__ in repr(link_of(connection))
        entry: ConnectionPoolEntry | None = link_of(connection).entry()
        assert entry is not None
        assert entry.dbapi_connection is connection.connection.dbapi_connection
