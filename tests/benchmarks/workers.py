"""What a worker pays once: import, start, `after_fork`, memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Effort, Report, Samples
from profiles import compiling

from wsgi_dbguard.lab.load import LoadGenerator
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.servers import APPS, Server, gunicorn

__all__ = ["run", "served_by"]

FORKS = Path(__file__).with_name("forks.py")
CONNECTIONS = 10  # of each engine, at a fork
IMPORT = """
import time, sqlalchemy, sqlalchemy.orm
begun = time.thread_time_ns()
import wsgi_dbguard
print(time.thread_time_ns() - begun)
"""
WORKER = ("--worker-class=gthread", "--workers=1", "--threads=4", "--graceful-timeout=2")
REQUESTS = 500  # before a worker is weighed


def run(effort: Effort, report: Report) -> None:
    _imports(effort, report)
    most = max(effort.engines) * CONNECTIONS
    with PostgreSQL(settings={"max_connections": str(most + 50)}) as server, tempfile.TemporaryDirectory() as directory:
        for engines in effort.engines:
            _forks(effort, report, server.url(), engines)
        _starts(effort, report, server.url("psycopg"), Path(directory))


def served_by(contender: str, url: str, directory: Path, *options: str, hooks: bool = True, **variables: Any) -> Server:
    """A gunicorn with the lab's echo application and that contender's pool; the guard's `hooks` or not."""
    return gunicorn(
        "echo:contender()",
        *options,
        guarded=hooks and contender == "guard",
        directory=directory,
        path=[APPS],
        ECHO_POOL=contender,
        DATABASE_URL=url,
        **variables,
    )


def _imports(effort: Effort, report: Report) -> None:
    """CPU time of the import, once SQLAlchemy and its ORM are there; compiled already, as it is when installed."""
    samples: Samples = {"guard": []}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(-1, effort.rounds):  # the first compiles
            told = subprocess.run(
                [sys.executable, "-c", IMPORT], env=compiling(cache), capture_output=True, check=True
            ).stdout
            if number >= 0:
                samples["guard"].append(int(told) / 1e6)
    row = report.row("import beyond sqlalchemy.orm", "wsgi_dbguard", samples, "ms", clock="CPU")
    report.goal("import beyond SQLAlchemy's, ms", row.median("guard"), most=15.0)


def _forks(effort: Effort, report: Report, url: str, engines: int) -> None:
    samples: Samples = {}
    for name in ("nothing", "dispose", "guard"):
        command = [sys.executable, str(FORKS), name, url, f"{engines}", f"{CONNECTIONS}", f"{effort.rounds}"]
        told = subprocess.run(command, capture_output=True, check=True)
        samples[name] = json.loads(told.stdout)
    where = f"{engines} x {CONNECTIONS} connections"
    row = report.row("in the child after a fork", where, samples, clock="wall", base="dispose")
    if engines == 10:
        ours, floor = (row.median(name) / 1000 for name in ("guard", "dispose"))
        report.goal(f"after_fork, {where}, ms", ours, most=1.0, floor=floor)


def _starts(effort: Effort, report: Report, url: str, directory: Path) -> None:
    """From the start of a gunicorn to its first answer from the database, and what its worker weighs after a while."""
    starts: Samples = {"nothing": [], "guard": []}
    weights: Samples = {"nothing": [], "guard": []}
    # A worker that compiles what it imports is slower and larger than those of an installed package. Without the hook,
    # which has the master import SQLAlchemy, so that a guarded worker would have less of its own than any other.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory / "compiled")}
    for number in range(-1, effort.starts):  # the first compiles
        for name in starts:
            begun = time.perf_counter()
            with served_by(name, url, directory, *WORKER, hooks=False, **compiled) as server:
                address = server.ready("/echo?token=first")
                took = (time.perf_counter() - begun) * 1000
                load = LoadGenerator(f"{address}/echo?token={{token}}", requests=REQUESTS, threads=4)
                result = load.run()
                assert result.succeeded == REQUESTS, result.errors
                if number >= 0:
                    starts[name].append(took)
                    weights[name].append(_resident(server.processes[-1]))
    report.row("gunicorn: start to first answer", "1 worker", starts, "ms", clock="wall")
    row = report.row(f"memory of a worker, {REQUESTS} requests", "gunicorn gthread", weights, "MiB")
    report.goal("memory per worker, MiB more", row.adds("guard"), most=1.0)


def _resident(pid: int) -> float:
    """MiB."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
