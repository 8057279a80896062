"""S8, the silent drop: a firewall or NAT forgets a connection that was idle. Nobody is told, so a request waits for an
answer for as long as the kernel sends again what is not acknowledged: up to 15 minutes. pool_pre_ping waits as well.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from wsgi_dbguard import DBGuard, guard, sockets
from wsgi_dbguard.lab.drivers import DRIVERS, Driver
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.network import SilentDrop, available
from wsgi_dbguard.lab.postgres import PostgreSQL

reason = available()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=str(reason))]

PATIENCE = 1.5  # seconds that the users of the unguarded site wait
BOUND = 60.0  # seconds: far from 15 minutes, and far from what the guard needs
PING: dict[str, Any] = {"ping_after": 0.0, "ping_timeout": 0.5}
INSTALLED = [driver for driver in DRIVERS if not driver.missing()]
Database = PostgreSQL | MariaDB
SLEEP = {"postgresql": "select pg_sleep(600)", "mariadb": "select sleep(600)"}


class Site:
    """A Flask application whose way to the database is `link`."""

    def __init__(self, server: Database, driver: Driver, link: SilentDrop, **options: Any) -> None:
        self.app = Flask(__name__)
        self.app.config["SQLALCHEMY_DATABASE_URI"] = str(driver.url(server.url_through(link.host, link.port)))
        self.app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
        self.db = SQLAlchemy(self.app)
        self.sleep = SLEEP[driver.database]
        self.app.add_url_rule("/", "page", lambda: self.run("select 'page'"))
        self.app.add_url_rule("/slow", "slow", lambda: self.run(self.sleep))
        with self.app.app_context():
            self.engine: Engine = self.db.engine
        self.fds: list[int | None] = []
        event.listen(self.engine, "connect", lambda connection, entry: self.fds.append(sockets.fileno(connection)))

    def run(self, statement: str) -> str:
        return str(self.db.session.scalar(text(statement)))

    def status(self, path: str = "/") -> int:
        try:
            return self.app.test_client().get(path).status_code
        except DBAPIError:  # mysql-connector's connection fails once more when the session is removed
            return 500  # what a server makes of it


@pytest.fixture(params=INSTALLED, ids=str)
def driver(request: pytest.FixtureRequest) -> Driver:
    one: Driver = request.param
    return one


@pytest.fixture
def make_site(server_of: Callable[..., Database], driver: Driver) -> Iterator[Callable[..., tuple[Site, SilentDrop]]]:
    with ExitStack() as stack:

        def make(**options: Any) -> tuple[Site, SilentDrop]:
            server = server_of(driver)
            link = stack.enter_context(SilentDrop(server.host, server.port))
            site = Site(server, driver, link, **options)
            stack.callback(site.engine.dispose)
            return site, link

        yield make


def forget(link: SilentDrop) -> None:
    try:
        link.forget()
    except PermissionError as error:
        pytest.skip(f"CAP_NET_ADMIN: {os.strerror(error.errno or 0)}")


@pytest.mark.parametrize("pre_ping", [False, True], ids=["nothing", "pool_pre_ping"])
def test_request_hangs(make_site: Callable[..., tuple[Site, SilentDrop]], pre_ping: bool) -> None:
    site, link = make_site(pool_pre_ping=pre_ping)
    assert site.status() == 200
    forget(link)
    request = threading.Thread(target=site.status)
    request.start()
    request.join(PATIENCE)
    assert request.is_alive()
    for fd in site.fds:  # or the test would take 15 minutes
        sockets.cut(fd)
    request.join(BOUND)
    assert not request.is_alive()


def test_forgotten_connection_costs_the_guard_a_ping(make_site: Callable[..., tuple[Site, SilentDrop]]) -> None:
    site, link = make_site()
    site.app.wsgi_app = DBGuard(site.app.wsgi_app, site.engine, replay="off", **PING)  # type: ignore[method-assign]
    assert site.status() == 200
    forget(link)
    begun = time.monotonic()
    assert site.status() == 200
    assert time.monotonic() - begun < BOUND
    assert guard(site.engine).stats()["replaced"] == {"ping": 1}


def test_query_in_a_network_that_went_silent_ends_in_503(make_site: Callable[..., tuple[Site, SilentDrop]]) -> None:
    site, link = make_site()
    settings: dict[str, Any] = {"replay": "off", "user_timeout": 1.0, "keepalive": (1, 1, 1)}
    site.app.wsgi_app = DBGuard(site.app.wsgi_app, site.engine, **settings)  # type: ignore[method-assign]
    assert site.status() == 200
    silence = threading.Timer(0.3, link.drop)
    silence.start()
    begun = time.monotonic()
    assert site.status("/slow") == 503
    assert time.monotonic() - begun < BOUND
    silence.join()
