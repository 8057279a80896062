"""HAProxy, what is its own; what it has in common with PgBouncer is in test_middlemen.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from wsgi_dbguard.lab import provision
from wsgi_dbguard.lab.haproxy import HAProxy
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

try:
    provision.program("haproxy", package="haproxy")
except ServerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)


@pytest.fixture
def balancer(database: PostgreSQL) -> Iterator[HAProxy]:
    with HAProxy(database) as running:
        yield running


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_url_connects_sqlalchemy_to_the_server_behind(database: PostgreSQL, balancer: HAProxy, driver: str) -> None:
    assert database.backends() == []  # it was started without a word to the server
    with create_engine(balancer.url(driver), poolclass=NullPool).connect() as connection:
        assert connection.scalar(text("select inet_server_port()")) == database.port
        assert len(database.backends()) == 1


def test_it_stands_before_mariadb_too(mariadb: MariaDB) -> None:
    with HAProxy(mariadb) as balancer, create_engine(balancer.url(), poolclass=NullPool).connect() as connection:
        assert connection.scalar(text("select @@port")) == mariadb.port


def test_a_server_that_is_down_is_a_connection_that_ends(database: PostgreSQL) -> None:
    with HAProxy(database, settings={"retries": "0"}) as balancer:
        database.stop()
        try:
            with socket.create_connection((balancer.host, balancer.port), timeout=60) as client:
                assert client.recv(1) == b""
        finally:
            database.start()
        with create_engine(balancer.url(), poolclass=NullPool).connect() as connection:
            assert connection.scalar(text("select 1")) == 1


def test_a_client_that_is_silent_for_too_long_is_disconnected(database: PostgreSQL) -> None:
    with (
        HAProxy(database, settings={"timeout client": "100ms"}) as balancer,
        socket.create_connection((balancer.host, balancer.port), timeout=60) as client,
    ):
        assert client.recv(1) == b""
