"""S7, the demoted primary: after a failover the old primary lives on as a read-only replica. pool_pre_ping's SELECT 1
succeeds there, and every write fails with "cannot execute INSERT in a read-only transaction", for hours.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

WRITES = 10
READ_ONLY = "show default_transaction_read_only"


class Site:
    """A Flask application on a host name that leads to `primary`, until it leads elsewhere."""

    def __init__(self, primary: PostgreSQL) -> None:
        self.primary = primary
        self.app = Flask(__name__)
        self.app.config["SQLALCHEMY_DATABASE_URI"] = primary.url("psycopg2")
        self.app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_pre_ping": True}
        self.db = SQLAlchemy(self.app)
        self.app.add_url_rule("/orders", "order", self.order, methods=["POST"])
        self.app.add_url_rule("/role", "role", self.role)
        with self.app.app_context():
            self.engine = self.db.engine
        event.listen(self.engine, "do_connect", self.resolve)

    def resolve(self, dialect: object, record: object, arguments: object, keywords: dict[str, object]) -> None:
        keywords["port"] = self.primary.port

    def order(self) -> str:
        self.db.session.execute(text("INSERT INTO orders VALUES (1)"))
        self.db.session.commit()
        return "ok"

    def role(self) -> str:
        return str(self.db.session.scalar(text(READ_ONLY)))


@pytest.fixture
def pair() -> Iterator[tuple[PostgreSQL, PostgreSQL]]:
    with PostgreSQL() as first, PostgreSQL() as second:
        for server in (first, second):
            server.query("CREATE TABLE orders (number int)")
        yield first, second


def fail_over(site: Site, client: FlaskClient, new: PostgreSQL) -> None:
    """The primary is demoted, and its name leads to the new one."""
    old, site.primary = site.primary, new
    old.query("ALTER SYSTEM SET default_transaction_read_only = on")
    old.query("SELECT pg_reload_conf()")
    # Each backend reads its configuration when it gets to it; there is one connection in the pool.
    wait_until(lambda: client.get("/role").text == "on", timeout=60.0, what="the demotion")


def statuses(client: FlaskClient, times: int = WRITES) -> list[int]:
    return [client.post("/orders").status_code for _ in range(times)]


@pytest.mark.slow
def test_pre_ping_finds_nothing_wrong(pair: tuple[PostgreSQL, PostgreSQL]) -> None:
    first, second = pair
    site = Site(first)
    client = site.app.test_client()
    assert statuses(client, 1) == [200]
    fail_over(site, client, second)
    assert statuses(client) == [500] * WRITES
    site.engine.dispose()


def test_guard_evicts_the_connection_at_the_first_error(pair: tuple[PostgreSQL, PostgreSQL]) -> None:
    first, second = pair
    site = Site(first)
    site.app.wsgi_app = DBGuard(site.app.wsgi_app, site.engine)  # type: ignore[method-assign]
    client = site.app.test_client()
    assert statuses(client, 1) == [200]
    fail_over(site, client, second)
    first_write, *others = statuses(client)
    assert first_write >= 500
    assert others == [200] * (WRITES - 1)
    assert second.query("SELECT count(*) FROM orders") == [(WRITES - 1,)]
    site.engine.dispose()
