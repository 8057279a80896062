"""An application in a directory of its own, and the doctor in it."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsgi_dbguard.doctor import Order, examine
from wsgi_dbguard.doctor.facts import Facts
from wsgi_dbguard.doctor.kinds import Finding
from wsgi_dbguard.lab.postgres import PostgreSQL

READ_BY_SERVERS = ("PORT", "WEB_CONCURRENCY", "GUNICORN_", "UWSGI_", "WSGI_DBGUARD_", "FLASK_", "DJANGO_")
Examine = Callable[..., tuple[Facts, list[Finding]]]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty, with the virtual environment's programs first and no settings of any server."""
    for name in list(os.environ):
        if name.startswith(READ_BY_SERVERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '/usr/bin:/bin')}")
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def database(postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> PostgreSQL:
    """The server of the run, as DATABASE_URL."""
    monkeypatch.setenv("DATABASE_URL", postgres.url())
    return postgres


@pytest.fixture
def look(site: Path) -> Examine:
    """`look(target="wsgi", **order)`: with the server's configuration that lies in the site."""

    def look(target: str = "", **order: Any) -> tuple[Facts, list[Finding]]:
        for server, file in (("gunicorn", "gunicorn.conf.py"), ("uwsgi", "uwsgi.ini")):
            if (site / file).exists():
                order = {"server": server, "file": file, **order}
        # A busy machine takes its time.
        return examine(Order(target=target, **{"timeout": 120.0, "patience": 60.0, **order}))

    return look
