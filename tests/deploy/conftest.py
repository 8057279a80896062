"""A copy of deploy/, as people make one, and what starts it: real gunicorn, real uWSGI, on a real PostgreSQL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.lab.load import wait_for_http
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import Child, wait_until

READ_BY_SERVERS = ("PORT", "WEB_CONCURRENCY", "GUNICORN_", "UWSGI_", "WSGI_DBGUARD_", "NOTIFY_SOCKET", "FLASK_")


@pytest.fixture(scope="session")
def environment(postgres: PostgreSQL) -> dict[str, str]:
    """Our own environment with the virtual environment first, a DATABASE_URL and no settings of any server."""
    scripts = sysconfig.get_path("scripts")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(READ_BY_SERVERS)}
    return {
        **clean,
        "PATH": f"{scripts}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "DATABASE_URL": postgres.url("psycopg2"),
    }


@pytest.fixture(scope="session")
def tables(environment: dict[str, str]) -> None:
    """What the deployer does once: `flask --app app init-db`."""
    subprocess.run(
        ["flask", "--app", "app", "init-db"],
        cwd=deploy_directory(),
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        timeout=60,
    )


@pytest.fixture
def site(tmp_path: Path, tables: None) -> Path:
    """A directory with the files of deploy/, changed by nobody else."""
    return shutil.copytree(deploy_directory(), tmp_path / "notes")


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """For unix sockets: pytest's own directories may be too long for one."""
    with tempfile.TemporaryDirectory(prefix="dbguard-") as directory:
        yield Path(directory)


@pytest.fixture
def start(site: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """`start(program, *options, **variables)`: runs it in the site, or in `cwd`, until the end of the test."""
    with ExitStack() as children:

        def run(*argv: str, cwd: Path = site, **variables: str) -> Child:
            env = {**environment, **variables}
            program = shutil.which(argv[0], path=env["PATH"])
            if program is None:
                pytest.skip(f"{argv[0]} is not installed")
            log = tmp_path / f"{Path(argv[0]).name}.log"
            # pytest shows it when the test fails
            children.callback(lambda: print(log.read_text(errors="replace")))
            child = children.enter_context(Child([program, *argv[1:]], log=log, env=env, cwd=cwd))
            children.callback(child.kill)  # an orderly end takes a second or two; tests that are about it wait for it
            return child

        yield run


def _address(child: Child, pattern: str) -> str:
    def found() -> list[str]:
        if not child.running:
            raise RuntimeError(f"{child!r}:\n{child.output()}")
        return re.findall(pattern, child.output())

    return wait_until(found, timeout=60, what=f"the address of {child!r}")[0]


@pytest.fixture
def gunicorn(start: Callable[..., Child]) -> Callable[..., tuple[Child, str]]:
    """`gunicorn(*options, workers=2, **variables)`: the server and its URL, as soon as it has so many and serves."""

    def serve(*options: str, workers: int = 2, **variables: str) -> tuple[Child, str]:
        child = start("gunicorn", "--config", "gunicorn.conf.py", *options, **{"PORT": "0", **variables})
        url = _address(child, r"Listening at: (http://\S+)")
        # A worker that is told to stop before it listens to signals does not hear it; this is said just before.
        wait_until(lambda: child.output().count("Booting worker") >= workers, timeout=60, what="every worker")
        wait_for_http(f"{url}/healthz", timeout=60)
        return child, url

    return serve


@pytest.fixture
def uwsgi(start: Callable[..., Child], site: Path) -> Callable[..., tuple[Child, str]]:
    """`uwsgi(*options, ini=…, cwd=…, workers=2, **variables)`: the server and its URL, once so many are ready."""

    def serve(
        *options: str, ini: str = "uwsgi.ini", cwd: Path = site, workers: int = 2, **variables: str
    ) -> tuple[Child, str]:
        child = start("uwsgi", *options, "--ini", ini, cwd=cwd, **{"PORT": "0", **variables})
        url = "http://" + _address(child, r"bound to TCP address (127\.0\.0\.1:\d+) ")
        # A worker that still loads the application hears no SIGHUP, neither from a reload nor from a graceful stop.
        wait_until(lambda: child.output().count("WSGI app 0 ") >= workers, timeout=60, what="every worker")
        wait_for_http(f"{url}/healthz", timeout=60)
        return child, url

    return serve


@pytest.fixture(params=["gunicorn", "uwsgi"])
def serve(request: pytest.FixtureRequest) -> Callable[..., tuple[Child, str]]:
    """`gunicorn`, then `uwsgi`: for what must hold for both."""
    server: Callable[..., tuple[Child, str]] = request.getfixturevalue(request.param)
    return server
