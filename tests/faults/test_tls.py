"""TLS: what OpenSSL sends on its own account, such as session tickets, condemns no connection and costs no ping.

A server sends its tickets with the end of the handshake, and every driver has read them with the first answer
(PostgreSQL has sent none since 2024). What arrives later is an unread byte like any other: one ping tells.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine, create_engine, text

from wsgi_dbguard import guard, sockets
from wsgi_dbguard.lab.drivers import DRIVERS, Driver
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

pytestmark = pytest.mark.slow

SIZE = 5
VERSION = {
    "postgresql": "select version from pg_stat_ssl where pid = pg_backend_pid()",
    "mariadb": "select variable_value from information_schema.session_status where variable_name = 'Ssl_version'",
}
Server = PostgreSQL | MariaDB


def encrypted(server: Server, driver: Driver) -> Engine:
    if driver.name == "pg8000":  # it takes a context instead of libpq's words
        context = ssl.create_default_context(cafile=str(server.certificate))
        url = driver.url(server.url()).set(query={})
        return create_engine(url, pool_size=SIZE, connect_args={"ssl_context": context})
    return create_engine(server.url(driver.name), pool_size=SIZE)


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_tickets_neither_condemn_nor_cost_a_ping(server_of: Callable[..., Server], driver: Driver) -> None:
    engine = encrypted(server_of(driver, tls=True), driver)
    pool_guard = guard(engine)
    for _ in range(3):
        with ExitStack() as stack:
            for connection in [stack.enter_context(engine.connect()) for _ in range(SIZE)]:
                assert connection.scalar(text(VERSION[driver.database])) == "TLSv1.3"
    # Checked out and given back without a word to the server: whatever came with the handshake is still there.
    engine.dispose()
    for _ in range(3):
        with ExitStack() as stack:
            for _ in range(SIZE):
                stack.enter_context(engine.connect())
    stats = pool_guard.stats()
    assert (stats["connects"], stats["pings"], stats["replaced"]) == (2 * SIZE, 0, {})
    engine.dispose()


@pytest.mark.parametrize("driver", [each for each in DRIVERS if each.database == "postgresql"], ids=str)
def test_encrypted_notification_costs_one_ping(server_of: Callable[..., Server], driver: Driver) -> None:
    server = server_of(driver, tls=True)
    engine = encrypted(server, driver)
    pool_guard = guard(engine)
    with engine.connect() as connection:
        connection.execute(text("listen tls"))
        connection.commit()
        fd = sockets.fileno(connection.connection.dbapi_connection)
        assert fd is not None
    server.query("notify tls, 'news'")
    wait_until(lambda: bool(sockets.happened(fd)), timeout=60.0, what="the notification")
    for _ in range(3):
        with engine.connect() as connection:
            assert connection.scalar(text("select 1")) == 1
    stats = pool_guard.stats()
    assert (stats["connects"], stats["pings"], stats["replaced"]) == (1, 1, {})
    engine.dispose()
