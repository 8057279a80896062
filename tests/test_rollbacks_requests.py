"""With `skip_idle_rollback` a request does not meet what one before it has left, nor what its own first run has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.drivers import DRIVERS, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


@pytest.fixture(params=[driver.name for driver in DRIVERS if driver.database == "mariadb"])
def engine(request: pytest.FixtureRequest, mariadb: MariaDB, make_engine: Callable[..., Engine]) -> Engine:
    if reason := driver_named(request.param).missing():
        pytest.skip(reason)
    return make_engine(mariadb.url(request.param), pool_size=1, max_overflow=0)


@pytest.fixture
def table(mariadb: MariaDB) -> Iterator[str]:
    mariadb.query("create table requested (a int primary key) engine=InnoDB")
    mariadb.query("insert into requested values (1)")
    yield "requested"
    mariadb.query("drop table requested")


class Site:
    """An application whose requests leave a Session in a transaction, after some statements; others may be served."""

    def __init__(self, engine: Engine, server: MariaDB, table: str) -> None:
        self.engine, self.server, self.table = engine, server, table
        self.sessions: list[Session] = []
        self.kill = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        session = Session(self.engine)
        self.sessions.append(session)
        rows = session.scalar(text(f"select count(*) from {self.table}"))
        session.execute(text(f"select * from {self.table} where a = 1 for update"))
        if self.kill:
            self.kill = False
            self.server.terminate(*self.server.backends())
        session.execute(text("savepoint s"))
        if environ["REQUEST_METHOD"] == "POST":
            session.execute(text(f"insert into {self.table} values ({10 + len(self.sessions)})"))
            session.commit()
            session.execute(text("set transaction read only"))  # the next one
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(rows).encode()]


def test_a_request_does_not_meet_what_one_before_it_has_left(engine: Engine, mariadb: MariaDB, table: str) -> None:
    site = Site(engine, mariadb, table)
    app: WSGIApplication = DBGuard(site, engine, skip_idle_rollback=True)
    client = Client(app)
    for rows in range(1, 4):
        response = client.get("/", buffered=True)
        assert response.data == str(rows).encode()
        # Nothing is locked, and this comes after its snapshot.
        mariadb.query(f"insert into {table} values ({100 + rows})")
        mariadb.query(f"select * from {table} for update nowait")
    assert client.post("/", buffered=True).data == b"4"
    assert client.post("/", buffered=True).data == b"5"  # not in the transaction that was to be read only
    assert len(mariadb.query(f"select * from {table}")) == 6


def test_a_request_that_runs_again_begins_anew(engine: Engine, mariadb: MariaDB, table: str) -> None:
    site = Site(engine, mariadb, table)
    client = Client(DBGuard(site, engine, skip_idle_rollback=True))
    assert client.get("/", buffered=True).data == b"1"
    site.kill = True
    assert client.get("/", buffered=True).status_code == 200
    assert len(site.sessions) == 3
    mariadb.query(f"select * from {table} for update nowait")
    assert client.post("/", buffered=True).data == b"1"
    assert len(mariadb.query(f"select * from {table}")) == 2
