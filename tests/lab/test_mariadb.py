from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pymysql
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from wsgi_dbguard.lab import provision
from wsgi_dbguard.lab.drivers import DRIVERS
from wsgi_dbguard.lab.mariadb import ADMIN, MariaDB, ServerMissing
from wsgi_dbguard.lab.process import gone, wait_until
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.sockets import DEAD, fileno, happened

try:
    provision.program("mariadbd", package="mariadb-server-core")
except ServerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

ASLEEP = "select count(*) from information_schema.processlist where user = 'dbguard' and command = 'Sleep'"
TRANSACTIONS = "select trx_id from information_schema.innodb_trx where trx_rows_modified > 0"
LISTED = "select 1 from information_schema.processlist where id = %s"
Connection: TypeAlias = "pymysql.Connection[Any]"

each_driver = pytest.mark.parametrize(
    "driver",
    [
        pytest.param(driver.name, marks=pytest.mark.skipif(driver.missing() is not None, reason=str(driver.missing())))
        for driver in DRIVERS
        if driver.database == "mariadb"
    ],
)


@pytest.fixture(scope="module")
def shared() -> Iterator[MariaDB]:
    with MariaDB() as server:
        yield server


@pytest.fixture
def server(shared: MariaDB) -> Iterator[MariaDB]:
    """To be stopped, killed or paused, not closed."""
    shared.start()
    yield shared
    shared.resume()


@pytest.fixture
def own() -> Iterator[MariaDB]:
    """To be closed."""
    with MariaDB() as server:
        yield server


def connect(server: MariaDB, **options: Any) -> Connection:
    return pymysql.connect(host=server.host, port=server.port, user="dbguard", database="dbguard", **options)


def connect_as_admin(server: MariaDB) -> Connection:
    return pymysql.connect(unix_socket=str(server.socket), user=ADMIN, autocommit=True)


def number(connection: Connection) -> int:
    with connection.cursor() as cursor:
        cursor.execute("select connection_id()")
        [[found]] = cursor.fetchall()
        return int(found)


def hung_up(connection: Connection) -> bool:
    fd = fileno(connection)
    assert fd is not None
    return bool(happened(fd) & DEAD)


@each_driver
def test_url_connects_sqlalchemy_to_a_database_of_its_own(shared: MariaDB, driver: str) -> None:
    for url in (shared.url(driver), shared.url_through(shared.socket, 0, driver)):
        with create_engine(url, poolclass=NullPool).connect() as connection:
            row = connection.execute(text("select user(), database(), @@character_set_server, @@time_zone")).one()
            assert row[0].startswith("dbguard@")
            assert tuple(row)[1:] == ("dbguard", "utf8mb4", "+00:00")


def test_url_names_the_dialect_and_driver_of_sqlalchemy(shared: MariaDB) -> None:
    assert shared.url("mysqlclient", charset="utf8mb4").startswith("mysql+mysqldb://dbguard@127.0.0.1:")
    assert (
        shared.url_through("localhost", 4711, "mariadb") == "mariadb+mariadbconnector://dbguard@localhost:4711/dbguard"
    )
    assert shared.url_through("::1", 1, "mysql-connector").startswith("mysql+mysqlconnector://dbguard@[::1]:1/")


def test_query_returns_rows_or_nothing_and_fills_arguments(shared: MariaDB) -> None:
    assert shared.query("select %s, %s + 1", "a%b", 1) == [("a%b", 2)]
    assert shared.query("create or replace table t (x int)") == []
    assert shared.query("insert into dbguard.t values (1), (2)") == []
    assert shared.query("select '%', count(*) from t") == [("%", 2)]
    with pytest.raises(pymysql.err.ProgrammingError):
        shared.query("select * from dbguard.missing")
    assert shared.query("select version()")[0][0].startswith(shared.version)


def test_query_reconnects_when_its_connection_was_killed(shared: MariaDB) -> None:
    [(number,)] = shared.query("select connection_id()")
    with contextlib.closing(connect_as_admin(shared)) as other, other.cursor() as cursor:
        cursor.execute("kill %s", (number,))
        # It leaves the list after its socket was closed.
        wait_until(lambda: not cursor.execute(LISTED, (number,)), timeout=60, what="the admin's connection to end")
    assert shared.query("select connection_id()") != [(number,)]


def test_applications_are_ordinary_users_and_the_admin_is_not(server: MariaDB) -> None:
    server.query("create or replace table dbguard.t (x int)")
    server.query("set global read_only = on")
    try:
        server.query("insert into dbguard.t values (1)")
        with (
            contextlib.closing(connect(server)) as connection,
            connection.cursor() as cursor,
            pytest.raises(pymysql.OperationalError, match="1290"),
        ):
            cursor.execute("insert into t values (1)")
    finally:
        server.query("set global read_only = off")


def test_backends_are_those_of_clients_in_order_of_connecting(server: MariaDB) -> None:
    wait_until(lambda: not server.backends(), timeout=60, what="those of the tests before to leave")
    connections = [connect(server) for _ in range(3)]
    try:
        assert server.backends() == [number(connection) for connection in connections]
    finally:
        for connection in connections:
            connection.close()


def test_terminate_ends_idle_connections_and_their_sockets_before_it_returns(server: MariaDB) -> None:
    wait_until(lambda: server.terminate() == 0, timeout=60, what="nobody to be left")
    server.query("create or replace table dbguard.t (x int)")
    busy = connect(server)
    idle: list[Connection] = []
    try:
        busy.cursor().execute("insert into t values (1)")  # opens a transaction
        # InnoDB's list is made anew when nobody has asked for 0.1 s.
        wait_until(lambda: server.query(TRANSACTIONS), timeout=60, what="the transaction", interval=0.2)
        for _ in range(10):
            idle = [connect(server) for _ in range(5)]
            # A connection is answered first, and put to sleep then.
            wait_until(lambda: server.query(ASLEEP) == [(6,)], timeout=60, what="six connections that sleep")
            assert server.terminate() == 5
            assert [hung_up(connection) for connection in idle] == [True] * 5
            for connection in idle:
                connection.close()
        assert not hung_up(busy)
        [left] = server.backends()
        assert left == number(busy)
        assert server.terminate(left) == 1
        assert hung_up(busy)
        assert server.terminate(left) == 0
    finally:
        busy.close()
        for connection in idle:
            with contextlib.suppress(pymysql.Error):
                connection.close()


@pytest.mark.slow
def test_idle_timeout_of_the_server_spares_the_admin() -> None:
    with MariaDB(settings={"wait_timeout": "1"}) as server, contextlib.closing(connect(server)) as connection:
        [(admin,)] = server.query("select connection_id()")
        wait_until(lambda: hung_up(connection), timeout=60, what="the timeout")
        assert server.query("select connection_id()") == [(admin,)]


def test_data_and_port_survive_restart_and_kill(server: MariaDB) -> None:
    port = server.port
    server.query("create or replace table dbguard.rows_ (x int) engine=innodb")
    for number, disturb in enumerate([server.restart, server.kill, server.stop]):
        server.query("insert into dbguard.rows_ values (%s)", number)
        pid = server.pid
        with contextlib.closing(connect(server)) as connection:
            disturb()
            assert number == 0 or gone(pid)
            wait_until(partial(hung_up, connection), timeout=60, what="the client to hear of it")
        server.start()
        assert (server.port, server.pid == pid) == (port, False)
        assert server.query("select count(*) from dbguard.rows_") == [(number + 1,)]


def test_stopped_server_refuses_connections_and_queries_and_keeps_its_port(server: MariaDB) -> None:
    server.stop()
    server.stop()
    assert "stopped" in repr(server)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))
    with pytest.raises(RuntimeError, match="stopped"):
        server.query("select 1")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((server.host, server.port))
    server.start()
    server.start()
    assert "running" in repr(server)
    assert server.query("select 1") == [(1,)]


def test_paused_server_accepts_but_answers_nothing_until_resumed(server: MariaDB) -> None:
    server.pause()
    with socket.create_connection((server.host, server.port), timeout=60) as client:
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)  # its greeting
        server.resume()
        client.settimeout(60)
        assert client.recv(1)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill", "close"])
def test_paused_server_can_be_ended_also_while_a_query_waits(own: MariaDB, end: str) -> None:
    own.query("select 1")
    pid = own.pid
    own.pause()

    def query() -> None:
        with contextlib.suppress(pymysql.Error, RuntimeError):
            own.query("select sleep(300)")

    thread = threading.Thread(target=query)
    thread.start()
    try:
        getattr(own, end)()
    finally:
        own.resume()
        thread.join(60)
    assert not thread.is_alive()
    assert gone(pid)


def test_url_through_a_proxy_is_cut_when_the_proxy_cuts(shared: MariaDB) -> None:
    with FaultProxy(shared.host, shared.port) as proxy:
        engine = create_engine(shared.url_through(proxy.host, proxy.port))
        with engine.connect() as connection:
            assert connection.scalar(text("select 1")) == 1
        assert proxy.accepted == 1
        engine.dispose()


@each_driver
def test_tls_connections_are_encrypted(driver: str, tls: MariaDB) -> None:
    urls = [tls.url(driver)]
    if driver != "mariadb":  # its bundled library may not know the option
        urls.append(tls.url(driver, ssl_ca=str(tls.certificate)))
    for url in urls:
        with create_engine(url, poolclass=NullPool).connect() as connection:
            assert connection.execute(text("show status like 'ssl_cipher'")).one()[1]


@pytest.fixture(scope="module")
def tls() -> Iterator[MariaDB]:
    with MariaDB(tls=True) as server:
        yield server


def test_plain_connections_are_served_beside_tls(tls: MariaDB) -> None:
    with contextlib.closing(connect(tls, ssl_disabled=True)) as connection, connection.cursor() as cursor:
        cursor.execute("show status like 'ssl_cipher'")
        assert cursor.fetchone() == ("Ssl_cipher", "")


@pytest.mark.slow
def test_settings_reach_the_server_whatever_they_hold() -> None:
    with MariaDB(settings={"max_connections": "20", "init_connect": "set @a = 'it''s # \"here\"'"}) as server:
        assert server.query("select @@max_connections, @@init_connect") == [(20, "set @a = 'it''s # \"here\"'")]


def test_impossible_setting_fails_with_the_words_of_the_log_and_leaves_nothing() -> None:
    server = MariaDB(settings={"no_such_setting": "1"})
    with pytest.raises(RuntimeError, match=r"no.such.setting"), server:
        pass
    assert not server.running
    assert not server.socket_directory.exists()


@pytest.mark.slow
def test_given_directory_keeps_the_data_for_the_next_server() -> None:
    with MariaDB() as place:  # a directory that the server's account can reach
        directory = place.socket_directory / "kept"
        with MariaDB(directory=directory) as first:
            first.query("create table dbguard.kept (x int)")
        with MariaDB(directory=directory) as second:
            assert second.query("select count(*) from dbguard.kept") == [(0,)]


def test_close_leaves_no_process_no_file_no_port(own: MariaDB) -> None:
    pid = own.pid
    own.close()
    own.close()
    assert gone(pid)
    assert not own.socket_directory.exists()
    with socket.socket() as other:
        other.bind((own.host, own.port))
    with pytest.raises(RuntimeError, match="closed"):
        own.start()


def test_server_that_is_nowhere_is_reported_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *args, **kwargs: None)
    with pytest.raises(ServerMissing, match="apt-get install mariadb-server-core"):
        MariaDB()


OWNER = """
import json, sys, time
from wsgi_dbguard.lab.drivers import DRIVERS
from wsgi_dbguard.lab.mariadb import MariaDB
server = MariaDB()
server.start()
print(json.dumps([server.pid, str(server.socket_directory)]), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_nothing_is_left_when_the_owner_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            pid, directory = json.loads(owner.stdout.readline())
            owner.send_signal(signal.SIGKILL)
            owner.wait(60)
            wait_until(lambda: gone(pid), timeout=60, what="the end of the server")
            wait_until(lambda: not Path(directory).exists(), timeout=60, what="the end of its directory")
        finally:
            owner.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_root_runs_the_server_as_nobody(shared: MariaDB) -> None:
    shared.start()
    assert Path(f"/proc/{shared.pid}").stat().st_uid == shared.directory.stat().st_uid != 0
