"""The units in deploy/systemd: what systemd says of them, and their very commands, started as it would."""

from __future__ import annotations

import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.lab.process import Child, descendants, gone, wait_until

UNITS = sorted(path.name for path in (deploy_directory() / "systemd").iterdir())


def read(unit: str) -> dict[str, str]:
    """The settings of a unit that are given once, all sections together."""
    lines = (deploy_directory() / "systemd" / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] not in "#[")


def here(command: str, site: Path, run_directory: Path, unit: str) -> list[str]:
    """A command of the unit with this machine's paths: its virtual environment, a private directory for /run."""
    name = unit.removesuffix(".service")
    substituted = command.replace("/srv/notes/.venv/bin", sysconfig.get_path("scripts"))
    return shlex.split(substituted.replace(f"%t/{name}", str(run_directory)))


@pytest.fixture
def notifications(run_directory: Path) -> Iterator[socket.socket]:
    """The socket that systemd hears a Type=notify service on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(run_directory / "notify"))
        listener.settimeout(60)
        yield listener


def get(path: Path, target: str) -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            return response.status, response.read()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong(unit: str, tmp_path: Path) -> None:
    text = (deploy_directory() / "systemd" / unit).read_text()
    # It wants to see the program.
    (tmp_path / unit).write_text(text.replace("/srv/notes/.venv/bin", sysconfig.get_path("scripts")))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)], capture_output=True, text=True, timeout=60
    )
    assert [line for line in result.stderr.splitlines() if unit in line] == []
    assert result.returncode == 0


@pytest.mark.slow  # uWSGI replaces its workers one after the other, and waits some seconds for each
@pytest.mark.parametrize("unit", UNITS)
def test_the_units_command_serves_reloads_and_stops(
    unit: str,
    site: Path,
    run_directory: Path,
    start: Callable[..., Child],
    notifications: socket.socket,
) -> None:
    settings = read(unit)
    assert (settings["Type"], settings["KillMode"]) == ("notify", "mixed")
    command = here(settings["ExecStart"], site, run_directory, unit)
    server = start(*command, NOTIFY_SOCKET=notifications.getsockname())
    ready = b""
    while b"READY=1" not in ready:
        ready = notifications.recv(4096)

    (path,) = run_directory.glob("*.sock")
    if "uwsgi" not in unit:  # which speaks its own protocol there; test_nginx.py asks it
        assert get(path, "/echo?token=abc") == (200, b"abc")
    # Both servers reload workers that have loaded the application.
    wait_until(lambda: len(descendants(server.pid)) >= 2, timeout=60, what="workers")
    if "uwsgi" in unit:
        wait_until(lambda: server.output().count("WSGI app 0 ") >= 2, timeout=60, what="both workers")
    workers = descendants(server.pid)
    reload = here(settings["ExecReload"].replace("$MAINPID", str(server.pid)), site, run_directory, unit)
    subprocess.run(reload, check=True, timeout=60)
    wait_until(lambda: all(map(gone, workers)), timeout=60, what="the end of the old workers")
    wait_until(lambda: len(descendants(server.pid)) >= 2, timeout=60, what="new workers")
    if "uwsgi" in unit:
        wait_until(lambda: "chain reloading complete" in server.output(), timeout=60, what="the reload")
    assert path.is_socket()

    workers = descendants(server.pid)
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait(timeout=float(settings["TimeoutStopSec"])) == 0
    wait_until(lambda: all(map(gone, workers)), timeout=60, what="the end of the workers")
    assert not path.exists()
