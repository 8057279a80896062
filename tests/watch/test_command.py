"""`wsgi-dbguard watch`: its answers, its exit codes, and what is left of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import make_url

from wsgi_dbguard.cli import main
from wsgi_dbguard.cli.watch import _Signals
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy

from .following import PATIENT, tables

WATCH = [sys.executable, "-m", "wsgi_dbguard", "watch"]
SECRET = "hunter2hunter2"


def watch(url: str, *options: str, **variables: str) -> Result:
    arguments = ["watch", url, "--seconds", "1", *options]  # one beat
    if "--timeout" not in options:
        arguments += ["--timeout", str(PATIENT)]
    return CliRunner().invoke(main, arguments, env=variables)


def of_user(postgres: PostgreSQL, user: str) -> str:
    return make_url(postgres.url()).set(username=user).render_as_string(hide_password=False)


def test_no_fault_is_exit_code_zero_and_leaves_nothing(postgres: PostgreSQL) -> None:
    result = watch(postgres.url())
    assert result.exit_code == 0, result.output
    assert "Verdict: No fault" in result.stdout
    assert result.stdout.count("fresh") >= 1
    assert tables(postgres) == []
    assert "\x1b" not in result.stdout


def test_json_is_an_object_for_each_beat_and_one_for_the_verdict(postgres: PostgreSQL) -> None:
    result = watch(postgres.url(), "--json", "--interval", "0.2")
    *beats, found = map(json.loads, result.stdout.splitlines())
    assert [beat["beat"] for beat in beats] == list(range(1, len(beats) + 1))
    for beat in beats:
        assert {"time", "kept", "pool", "fresh"} < set(beat)
        assert beat["fresh"]["trouble"] is None
        assert beat["fresh"]["uptime"] > 0
    assert found["fault"] == "none"
    assert found["ways"]["fresh"]["beats"] == len(beats)
    assert found["table_left"] is None


def test_table_is_kept_when_told(postgres: PostgreSQL) -> None:
    result = watch(postgres.url(), "--keep", "--json")
    *beats, found = map(json.loads, result.stdout.splitlines())
    [name] = tables(postgres)
    try:
        assert found["table_left"] == name
        assert f"DROP TABLE {name};" in result.stderr
        [(rows,)] = postgres.query(f"select count(*) from {name}")
        assert rows == 3 * len(beats)
    finally:
        postgres.query(f"drop table {name}")


def test_read_only_makes_no_table(postgres: PostgreSQL) -> None:
    result = watch(postgres.url(), "--read-only", "--keep")
    assert result.exit_code == 0
    assert "table" not in result.output
    assert tables(postgres) == []


def test_who_may_not_make_a_table_is_told_and_reads(postgres: PostgreSQL) -> None:
    postgres.query("drop role if exists watcher")
    postgres.query("create role watcher login")
    postgres.query("revoke create on schema public from public")
    try:
        result = watch(of_user(postgres, "watcher"))
    finally:
        postgres.query("drop role watcher")
    assert result.exit_code == 0, result.output
    assert "no table can be made, so beats only read (permission denied" in result.stderr


def test_server_that_takes_no_writes_is_told_and_read(postgres: PostgreSQL) -> None:
    result = watch(postgres.url(options="-c default_transaction_read_only=on"))
    assert result.exit_code == 0, result.output
    assert "the server takes no writes: it is a replica, or read-only, so beats only read" in result.stderr


def test_nobody_who_listens_is_a_server_fault(postgres: PostgreSQL) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        result = watch(f"postgresql+psycopg2://app:{SECRET}@127.0.0.1:{reserved.getsockname()[1]}/app")
    assert result.exit_code == 1
    assert "no connection can be opened yet, so beats only read" in result.stderr
    assert "Verdict: Server fault" in result.stdout
    assert "nobody listened at the address" in result.stdout
    assert SECRET not in result.output
    assert "app:***@127.0.0.1" in result.stderr


def test_name_that_nobody_knows_is_a_network_fault() -> None:
    result = watch(f"mysql+pymysql://app:{SECRET}@db.invalid/app")
    assert result.exit_code == 1
    assert "Verdict: Network fault" in result.stdout
    assert "the address could not be reached" in result.stdout
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:///app.db", "not for sqlite"),
        ("nonsense", "no SQLAlchemy URL"),
        (f"postgresql://app:{SECRET}@db:port/app", "no SQLAlchemy URL"),
        (f"postgres://app:{SECRET}@db/app", "no such database or driver"),
        (f"postgresql+asyncpg://app:{SECRET}@db/app", "asyncpg"),
        (f"mysql+nothing://app:{SECRET}@db/app", "no such database or driver"),
    ],
)
def test_what_cannot_be_watched_is_refused_in_a_line(url: str, told: str) -> None:
    result = watch(url)
    assert result.exit_code == 2
    assert told in result.stderr
    assert SECRET not in result.output
    assert len(result.stderr.splitlines()) == 1


def test_unknown_database_is_not_waited_for(postgres: PostgreSQL) -> None:
    result = watch(make_url(postgres.url()).set(database="nowhere").render_as_string(hide_password=False))
    assert result.exit_code == 2
    assert 'database "nowhere" does not exist' in result.stderr


def test_unknown_user_is_not_waited_for(postgres: PostgreSQL) -> None:
    result = watch(of_user(postgres, "nobody_knows"))
    assert result.exit_code == 2
    assert "cannot connect" in result.stderr


def test_password_that_mariadb_refuses_is_not_waited_for(mariadb: MariaDB) -> None:
    result = watch(make_url(mariadb.url()).set(username="nobody", password=SECRET).render_as_string(False))
    assert result.exit_code == 2
    assert "cannot connect: (1045" in result.stderr
    assert SECRET not in result.output


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"sslmode": "require"}, "SSL was required"),
        ({"sslmode": "nonsense"}, "sslmode"),
        ({"connect_timeout": "soon"}, "connect_timeout"),
        ({"options": "-c nonsense=1"}, "nonsense"),
    ],
    ids=str,
)
def test_option_that_will_not_do_later_either_is_no_fault(
    postgres: PostgreSQL, driver: str, query: dict[str, str], told: str
) -> None:
    result = watch(postgres.url(driver, **query))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    assert told in result.stderr


def test_certificate_that_is_not_there_is_no_fault() -> None:
    result = watch("mysql+pymysql://app@127.0.0.1:1/app?ssl_ca=/nonexistent")
    assert (result.exit_code, result.stdout) == (2, "")


def test_socket_that_is_not_there_is_a_server_fault() -> None:
    result = watch("postgresql+psycopg2://app@/app?host=/nonexistent")
    assert result.exit_code == 1
    assert "Verdict: Server fault" in result.stdout


def test_argument_that_the_driver_does_not_know_is_refused_in_a_line() -> None:
    result = watch(f"mysql+pymysql://app:{SECRET}@127.0.0.1:1/app?nonsense=1")
    assert result.exit_code == 2
    assert "'nonsense'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_url_may_come_from_the_environment(postgres: PostgreSQL) -> None:
    arguments = ["watch", "--seconds", "1", "--timeout", str(PATIENT), "--read-only"]
    result = CliRunner().invoke(main, arguments, env={"DATABASE_URL": postgres.url()})
    assert result.exit_code == 0, result.output


def test_url_with_the_guards_plugin(postgres: PostgreSQL) -> None:
    result = watch(postgres.url(plugin="dbguard", dbguard_ping_after="0"))
    assert result.exit_code == 0, result.output


@pytest.fixture
def heeds() -> Iterator[Callable[[signal.Signals], object]]:
    """`heeds(number)`: programs that are started from now on do not ignore it, as under nohup they would."""
    with ExitStack() as stack:

        def heed(number: signal.Signals) -> None:
            before = signal.signal(number, signal.default_int_handler)
            stack.callback(signal.signal, number, before)

        yield heed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
def test_signal_ends_it_with_the_verdict_and_without_the_table(
    postgres: PostgreSQL, tmp_path: Path, heeds: Callable[..., object], number: signal.Signals
) -> None:
    heeds(number)
    output = tmp_path / "output"
    command = [*WATCH, postgres.url(), "--seconds", "3600", "--interval", "0.2", "--timeout", str(PATIENT)]
    environment: dict[str, Any] = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with output.open("w") as told, subprocess.Popen(command, stdout=told, stderr=told, env=environment) as process:
        try:
            wait_until(lambda: output.read_text().count("fresh") > 2, timeout=120, what="the beats", interval=0.05)
            assert len(tables(postgres)) == 1
            process.send_signal(number)
            assert process.wait(120) == 128 + number, output.read_text()
        finally:
            process.kill()
    assert "Verdict: No fault" in output.read_text()
    assert "Traceback" not in output.read_text()
    assert tables(postgres) == []


@pytest.mark.slow
def test_second_interrupt_waits_for_nothing_and_tells_the_table(
    postgres: PostgreSQL, tmp_path: Path, heeds: Callable[..., object]
) -> None:
    heeds(signal.SIGINT)
    output = tmp_path / "output"
    with FaultProxy(postgres.host, postgres.port) as proxy, output.open("w") as told:
        command = [*WATCH, postgres.url_through(proxy.host, proxy.port), "--interval", "0.2", "--timeout", "300"]
        with subprocess.Popen(command, stdout=told, stderr=told) as process:
            try:
                wait_until(lambda: "fresh" in output.read_text(), timeout=120, what="a beat", interval=0.05)
                proxy.blackhole()

                def interrupted() -> bool:
                    process.send_signal(signal.SIGINT)
                    return process.poll() is not None

                wait_until(interrupted, timeout=60, what="its end", interval=0.1)
            finally:
                process.kill()
    [name] = tables(postgres)
    postgres.query(f"drop table {name}")
    assert process.returncode == 130
    assert f"ended at once; the table {name} may be left: DROP TABLE {name};" in output.read_text()


def test_signal_in_the_middle_of_a_wait_for_it_blocks_nobody() -> None:
    with _Signals() as signals:
        with signals.stop._cond:  # type: ignore[attr-defined]  # as its wait() has it
            signal.raise_signal(signal.SIGTERM)
        assert signals.stop.wait(60)
    assert signals.received == [signal.SIGTERM]


def test_under_nohup_it_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("way", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_reader_that_goes_away_ends_it_like_sigpipe_and_without_the_table(
    postgres: PostgreSQL, way: Callable[[], tuple[int, int]]
) -> None:
    command = [*WATCH, postgres.url(), "--interval", "0.1", "--timeout", str(PATIENT)]
    reading, writing = way()
    environment = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, env=environment, text=True) as process:
        try:
            os.close(writing)
            os.read(reading, 1000)
            os.close(reading)
            _, told = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in told) == (128 + signal.SIGPIPE, False)
    assert tables(postgres) == []


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": "xterm", "PYTHONIOENCODING": "ascii"}], ids=str)
def test_terminal_that_cannot_show_the_view_gets_lines(postgres: PostgreSQL, variables: dict[str, str]) -> None:
    reading, terminal = os.openpty()
    with open(reading, "rb", buffering=0), os.fdopen(terminal, "wb") as screen:
        command = [*WATCH, postgres.url(), "--seconds", "1", "--timeout", str(PATIENT)]
        subprocess.run(command, stdout=screen, stderr=screen, env={**os.environ, **variables}, timeout=120, check=True)
        told = os.read(reading, 100_000).decode()
    assert re.search(r"fresh [0-9.]+ ms +kept [0-9.]+ ms", told)
    assert "Verdict: No fault" in told
    assert "\x1b" not in told
