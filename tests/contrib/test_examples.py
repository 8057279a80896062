"""The examples of deploy/examples under a real gunicorn with a real PostgreSQL.

Each is preloaded by a master that has used its connections before it forks: what people do by accident.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import descendants, gone, wait_until
from wsgi_dbguard.lab.servers import Server, gunicorn

pytestmark = pytest.mark.slow

PATIENCE = 60.0  # seconds, for what takes a few milliseconds on a machine that is not busy


@dataclass(frozen=True)
class Example:
    """`tables` makes those that it needs, `preloaded` is a module that uses what the application has."""

    name: str
    tables: tuple[str, ...]
    preloaded: str
    pages: tuple[str, ...] = ("/notes",)
    inherited: int = 1

    def __str__(self) -> str:
        return self.name


FLASK = Example(
    "flask",
    ("-m", "flask", "--app", "app", "init-db"),
    """
from app import create_app, db
application = create_app()
with application.app_context():
    db.engine.connect().close()
""",
)
DJANGO = Example(
    "django",
    ("-c", "import wsgi, views; views.create_tables()"),
    """
from wsgi import application
from django.db import connection
from views import engine
engine.connect().close()
connection.ensure_connection()
""",
    pages=("/notes", "/clock"),
    inherited=2,
)
PYRAMID = Example(
    "pyramid",
    ("-c", "import notes; notes.create_tables()"),
    """
from wsgi import application
application.app.registry.engine.connect().close()
""",
)


@dataclass
class Site:
    """A served example."""

    example: Example
    server: Server
    postgres: PostgreSQL

    def ask(self, path: str, body: object = None) -> int:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.server.url + path, data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=PATIENCE) as response:  # raises for 4xx and 5xx
            response.read()
            return int(response.status)

    def backends(self) -> dict[int, object]:
        """When each of its connections did something last, by the process id of the server behind it."""
        found = "select pid, (state, state_change) from pg_stat_activity where application_name = %s"
        return dict(self.postgres.query(found, self.example.name))


@pytest.fixture(params=[FLASK, DJANGO, PYRAMID], ids=str)
def site(request: pytest.FixtureRequest, postgres: PostgreSQL, tmp_path: Path) -> Iterator[Site]:
    example: Example = request.param
    directory = tmp_path / "site"
    shutil.copytree(deploy_directory() / "examples" / example.name, directory)
    (directory / "preloaded.py").write_text(example.preloaded)
    variables: dict[str, Any] = {
        "DATABASE_URL": postgres.url("psycopg2"),
        "SECRET_KEY": "s" * 60,
        "PGAPPNAME": example.name,
    }
    subprocess.run(
        [sys.executable, *example.tables], cwd=directory, env={**os.environ, **variables}, check=True, timeout=120
    )
    server = gunicorn(
        "preloaded:application", "--preload", guarded=True, directory=tmp_path, path=[directory], **variables
    )
    with server:
        server.ready()
        yield Site(example, server, postgres)


def test_connections_that_are_killed_or_inherited_fail_no_request(site: Site) -> None:
    inherited = site.backends()
    assert len(inherited) == site.example.inherited

    # The worker uses none of its master's.
    assert site.ask("/notes", {"text": "hello"}) == 201
    assert [site.ask(page) for page in site.example.pages] == [200] * len(site.example.pages)
    own = site.backends().keys() - inherited.keys()
    assert own

    # One that died in the pool is replaced before a request gets it.
    site.postgres.terminate(*own)
    assert [site.ask(page) for page in site.example.pages] == [200] * len(site.example.pages)
    site.postgres.terminate(*site.backends().keys() - inherited.keys())
    assert site.ask("/notes", {"text": "hello again"}) == 201

    # A worker that ends closes nothing of its master's, and the next one is as clean.
    (worker,) = descendants(site.server.child.pid)
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: gone(worker), timeout=PATIENCE, what="the end of the worker")
    assert [site.ask(page) for page in site.example.pages] == [200] * len(site.example.pages)
    now = site.backends()
    assert {pid: now.get(pid) for pid in inherited} == inherited
    assert "Traceback" not in site.server.child.output()
