"""S4, the invalid transaction: "Can't reconnect until invalid transaction is rolled back", on every request for ever,
after one disconnect. One global SQLAlchemy Session for all requests of a process.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.postgres import PostgreSQL

LATER = 10


class Site:
    """An application with one session, which it neither closes nor rolls back."""

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server
        self.engine = create_engine(server.url("psycopg2"), pool_pre_ping=True)
        self.session = Session(self.engine)
        self.app = Flask(__name__)
        self.app.add_url_rule("/read", "read", self.read)
        self.app.add_url_rule("/write", "write", self.write, methods=["POST"])
        self.app.add_url_rule("/slow", "slow", self.slow, methods=["GET", "POST"])

    def read(self) -> str:
        return str(self.session.scalar(text("select count(*) from orders")))

    def write(self) -> str:
        self.session.execute(text("insert into orders values (1)"))
        self.session.commit()
        return "ok"

    def slow(self) -> str:
        """The server is restarted while this runs, the first time."""
        pid = self.session.scalar(text("select pg_backend_pid()"))
        if not self.server.query("select 1 from orders where number = 0"):
            self.server.query("insert into orders values (0)")
            self.server.terminate(pid)
        return str(self.session.scalar(text("select 'well'")))


@pytest.fixture
def site(postgres: PostgreSQL) -> Iterator[Site]:
    postgres.query("create table orders (number int)")
    site = Site(postgres)
    yield site
    site.session.close()
    site.engine.dispose()
    postgres.query("drop table orders")


def status(client: FlaskClient, path: str, method: str = "GET") -> int:
    with client.open(path, method=method) as response:  # closed, as by a server
        return response.status_code


def statuses(client: FlaskClient) -> list[int]:
    return [status(client, "/read") for _ in range(LATER)] + [status(client, "/write", "POST") for _ in range(LATER)]


def test_one_disconnect_breaks_every_later_request(site: Site) -> None:
    client = site.app.test_client()
    assert status(client, "/read") == 200
    assert status(client, "/slow", "POST") == 500
    assert statuses(client) == [500] * 2 * LATER


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("method", "first"), [("GET", 200), ("POST", 503)])
def test_the_guard_heals_the_session(method: str, first: int, site: Site) -> None:
    site.app.wsgi_app = DBGuard(site.app.wsgi_app, site.engine)  # type: ignore[method-assign]
    client = site.app.test_client()
    assert status(client, "/read") == 200
    assert status(client, "/slow", method) == first
    assert statuses(client) == [200] * 2 * LATER
    assert site.server.query("select count(*) from orders where number = 1") == [(LATER,)]
