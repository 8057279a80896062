"""One PostgreSQL: asked, stopped, killed and paused."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from wsgi_dbguard.lab import provision
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import descendants, gone, wait_until

needs_system = pytest.mark.skipif(
    not any(provision.POSTGRESQL.glob("*/bin/postgres")),
    reason="Debian's PostgreSQL is not installed (apt-get install postgresql)",
)


SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # the server answers with one byte, N or S


@pytest.fixture(scope="module", params=["default", pytest.param("system", marks=[needs_system, pytest.mark.slow])])
def kind(request: pytest.FixtureRequest) -> Iterator[PostgreSQL]:
    with PostgreSQL(system=request.param == "system") as server:
        yield server


@pytest.fixture
def server(kind: PostgreSQL) -> Iterator[PostgreSQL]:
    """Of either kind, to be stopped, killed or paused, not closed."""
    kind.start()
    yield kind
    kind.resume()


@pytest.fixture
def own() -> Iterator[PostgreSQL]:
    """To be closed."""
    with PostgreSQL() as server:
        yield server


def connect(server: PostgreSQL) -> psycopg2.extensions.connection:
    return psycopg2.connect(host=server.host, port=server.port, user="dbguard", dbname="dbguard")


def hung_up(connection: psycopg2.extensions.connection) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def processes(server: PostgreSQL) -> list[int]:
    return [server.pid, *descendants(server.pid)]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_url_connects_sqlalchemy_to_a_database_of_its_own(postgres: PostgreSQL, driver: str) -> None:
    engine = create_engine(postgres.url(driver, application_name="x y"), poolclass=NullPool)
    with engine.connect() as connection:
        row = connection.execute(text("select current_user, current_database(), current_setting('application_name')"))
        assert tuple(row.one()) == ("dbguard", "dbguard", "x y")


def test_url_through_leads_to_another_address(postgres: PostgreSQL) -> None:
    assert postgres.url_through("localhost", 4711, "psycopg") == "postgresql+psycopg://dbguard@localhost:4711/dbguard"
    engine = create_engine(postgres.url_through(postgres.socket_directory, postgres.port), poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.scalar(text("select inet_server_addr() is null")) is True


def test_cluster_is_utf8_with_c_locale(postgres: PostgreSQL) -> None:
    assert postgres.query(
        "select pg_encoding_to_char(encoding), datcollate from pg_database where datname = current_database()"
    ) == [("UTF8", "C")]
    assert postgres.query("show fsync") == [("off",)]
    assert postgres.query("show synchronous_commit") == [("on",)]
    assert postgres.query("show server_version")[0][0].split()[0] == postgres.version


def test_query_returns_rows_or_nothing_and_fills_arguments(postgres: PostgreSQL) -> None:
    assert postgres.query("select %s, %s::int + 1", "a%b", 1) == [("a%b", 2)]
    assert postgres.query("create temp table t (x int)") == []
    assert postgres.query("insert into t values (1), (2)") == []
    assert postgres.query("select '%', count(*) from t") == [("%", 2)]
    assert postgres.query("drop table t") == []
    with pytest.raises(psycopg2.errors.UndefinedTable):
        postgres.query("select * from missing")
    assert postgres.query("select 1") == [(1,)]


def test_query_reconnects_when_its_backend_was_terminated(postgres: PostgreSQL) -> None:
    [(pid,)] = postgres.query("select pg_backend_pid()")
    with contextlib.closing(connect(postgres)) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s)", (pid,))
    wait_until(lambda: gone(pid), timeout=60, what="the admin's backend to end")
    assert postgres.query("select pg_backend_pid()") != [(pid,)]


def test_backends_are_those_of_clients_in_order_of_connecting(server: PostgreSQL) -> None:
    wait_until(lambda: not server.backends(), timeout=60, what="those of the tests before to leave")
    connections = [connect(server) for _ in range(3)]
    try:
        assert server.backends() == [connection.info.backend_pid for connection in connections]
    finally:
        for connection in connections:
            connection.close()


def test_terminate_ends_idle_backends_and_their_sockets_before_it_returns(server: PostgreSQL) -> None:
    wait_until(lambda: server.terminate() == 0, timeout=60, what="nobody to be left")
    idle = [connect(server) for _ in range(5)]
    busy = connect(server)
    try:
        busy.cursor().execute("select 1")  # opens a transaction
        assert server.terminate() == 5
        assert [hung_up(connection) for connection in idle] == [True] * 5
        assert not hung_up(busy)
        assert server.backends() == [busy.info.backend_pid]
        assert server.terminate(busy.info.backend_pid) == 1
        assert hung_up(busy)
        assert server.terminate(busy.info.backend_pid) == 0
    finally:
        for connection in [*idle, busy]:
            connection.close()


def test_data_and_port_survive_restart_in_every_mode_and_kill(server: PostgreSQL) -> None:
    port = server.port
    server.query("drop table if exists rows; create table rows (x int)")
    for number, disturb in enumerate(
        [server.restart, lambda: server.restart("smart"), lambda: server.restart("immediate"), server.kill]
    ):
        server.query("insert into rows values (%s)", number)
        ended = None if number == 1 else connect(server)  # "smart" would wait for it
        pids = processes(server)
        disturb()
        assert all(map(gone, pids))
        if ended is not None:
            wait_until(partial(hung_up, ended), timeout=60, what="the client to hear of it")
            ended.close()
        server.start()
        assert server.port == port
        assert server.query("select count(*) from rows") == [(number + 1,)]


def test_smart_stop_waits_for_clients_and_says_so(server: PostgreSQL) -> None:
    with contextlib.closing(connect(server)) as connection:
        with pytest.raises(TimeoutError):
            server.stop("smart", timeout=0.2)
        assert server.running
        assert not hung_up(connection)
    server.stop("smart")
    assert not server.running


def test_stopped_server_refuses_connections_and_queries_until_started(server: PostgreSQL) -> None:
    server.stop()
    server.stop()
    assert "stopped" in repr(server)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))
    with pytest.raises(RuntimeError, match="stopped"):
        server.query("select 1")
    server.start()
    server.start()
    assert "running" in repr(server)
    assert server.query("select 1") == [(1,)]


def test_port_of_a_stopped_server_is_given_to_nobody_else(server: PostgreSQL) -> None:
    server.stop()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((server.host, server.port))


def test_paused_server_accepts_but_answers_nothing_until_resumed(server: PostgreSQL) -> None:
    established = connect(server)
    server.pause()
    try:
        with socket.create_connection((server.host, server.port), timeout=60) as client:
            client.settimeout(0.2)
            client.sendall(SSL_REQUEST)
            with pytest.raises(TimeoutError):
                client.recv(1)
            server.resume()
            client.settimeout(60)
            assert client.recv(1) in (b"N", b"S")
        with established.cursor() as cursor:
            cursor.execute("select 1")
    finally:
        server.resume()
        established.close()


@pytest.mark.parametrize("end", ["close", *(pytest.param(end, marks=pytest.mark.slow) for end in ("stop", "kill"))])
def test_paused_server_can_be_ended_also_while_a_query_waits(own: PostgreSQL, end: str) -> None:
    own.query("select 1")
    pids = processes(own)
    own.pause()

    def query() -> None:
        with contextlib.suppress(psycopg2.OperationalError, RuntimeError):
            own.query("select pg_sleep(300)")

    thread = threading.Thread(target=query)
    thread.start()
    try:
        getattr(own, end)()
    finally:
        own.resume()
        thread.join(60)
    assert not thread.is_alive()
    assert all(map(gone, pids))


def test_server_killed_by_a_signal_from_elsewhere_is_started_anew(server: PostgreSQL) -> None:
    server.query("select 1")
    os.kill(server.pid, signal.SIGQUIT)
    wait_until(lambda: not server.running, timeout=60, what="the end of the server")
    server.start()
    assert server.query("select 1") == [(1,)]


def segments() -> set[str]:
    """The ids of all that there are: proc_sysvipc(5), the second column."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_kill_leaves_no_shared_memory_behind(server: PostgreSQL) -> None:
    segment = (server.directory / "postmaster.pid").read_text().splitlines()[6].split()[1]
    assert segment in segments()
    server.kill()
    assert segment not in segments()
