"""deploy/uwsgi.ini and the include deploy/dbguard.ini, what is uWSGI's alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.lab.process import Child, wait_until

Serve = Callable[..., tuple[Child, str]]

# What uWSGI made of its options, and whose function it calls in a forked process.
TELLING_APPLICATION = """
import json, uwsgi

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    options = {name: value.decode() if isinstance(value, bytes) else value for name, value in uwsgi.opt.items()}
    return [json.dumps({"hook": uwsgi.post_fork_hook.__module__, "options": options}, default=repr).encode()]
"""

NEEDED = ("lazy-apps", "enable-threads", "master", "single-interpreter", "need-app", "die-on-term", "vacuum")


def test_no_option_that_crashes_workers_or_mules() -> None:
    for path in deploy_directory().glob("*.ini"):
        assert "py-call-" not in path.read_text()


@pytest.mark.parametrize("include", ["%ddbguard.ini", "exec://wsgi-dbguard config uwsgi"])
def test_the_include_guards_every_worker(uwsgi: Serve, site: Path, include: str) -> None:
    (site / "wsgi.py").write_text(TELLING_APPLICATION)
    (site / "own.ini").write_text(
        f"[uwsgi]\nstrict = true\nini = {include}\nhttp-socket = 127.0.0.1:0\nmodule = wsgi:application\n"
    )
    _, url = uwsgi(ini="own.ini", workers=1)
    with urlopen(url, timeout=30) as response:
        told = json.load(response)
    assert told["hook"] == "wsgi_dbguard.hooks.uwsgi"
    assert [name for name in NEEDED if name not in told["options"]] == []


def test_the_example_starts_from_any_directory(uwsgi: Serve, site: Path, run_directory: Path) -> None:
    uwsgi(ini=str(site / "uwsgi.ini"), cwd=run_directory)


@pytest.mark.slow
def test_an_application_that_cannot_be_imported_stops_the_start(start: Callable[..., Child], site: Path) -> None:
    (site / "wsgi.py").write_text("raise RuntimeError('no application')\n")
    server = start("uwsgi", "--ini", "uwsgi.ini", PORT="0")
    assert server.wait(timeout=60) != 0


@pytest.mark.slow
def test_a_socket_on_the_command_line_is_the_only_one(start: Callable[..., Child], run_directory: Path) -> None:
    socket = run_directory / "uwsgi.sock"
    server = start("uwsgi", "--socket", str(socket), "--ini", "uwsgi.ini")
    wait_until(lambda: server.output().count("WSGI app 0 ") == 2, timeout=60, what="both workers")
    assert socket.is_socket()
    assert "bound to TCP" not in server.output()
    assert server.stop(timeout=60) == 0
    assert not socket.exists()
