from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from wsgi_dbguard.lab import provision
from wsgi_dbguard.lab.haproxy import HAProxy
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.process import gone, wait_until

try:
    provision.program("haproxy", package="haproxy")
except ServerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)


@pytest.fixture(scope="module")
def running() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def database(running: PostgreSQL) -> PostgreSQL:
    """Without the connections of the test before, whose backends may still be about to end."""
    wait_until(lambda: not running.backends(), timeout=60, what="those of the test before to leave")
    return running


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


@pytest.mark.slow
def test_it_stands_before_mariadb_too() -> None:
    try:
        server = MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with (
        server,
        HAProxy(server) as balancer,
        create_engine(balancer.url(), poolclass=NullPool).connect() as connection,
    ):
        assert connection.scalar(text("select @@port")) == server.port


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


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_restart_and_kill_disconnect_clients_and_keep_the_port(balancer: HAProxy, end: str) -> None:
    engine = create_engine(balancer.url())
    port, pid = balancer.port, balancer.pid
    with engine.connect() as connection:
        assert connection.scalar(text("select 1")) == 1
        getattr(balancer, end)()
        assert gone(pid)
        balancer.start()
        with pytest.raises(OperationalError):
            connection.scalar(text("select 1"))
    with engine.connect() as connection:
        assert connection.scalar(text("select 1")) == 1
    assert balancer.port == port
    engine.dispose()


def test_stopped_it_refuses(balancer: HAProxy) -> None:
    balancer.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((balancer.host, balancer.port))


def test_impossible_setting_fails_with_the_words_of_the_log_and_leaves_nothing(database: PostgreSQL) -> None:
    balancer = HAProxy(database, settings={"no such setting": "1"})
    with pytest.raises(RuntimeError, match="unknown keyword"), balancer:
        pass
    assert not balancer.running
    assert not balancer.log.exists()
