"""Where the time goes, of what has a goal: functions of a checkout, a request, a fork; modules of the import.

CPU time; but a profiler makes each call of a function dearer than it is, so these are shares, not figures.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import create_engine

__all__ = ["Line", "compiling", "lines", "run"]

Line = tuple[str, float, int]  # function or module, its own µs, calls
FORKS = Path(__file__).with_name("forks.py")
CALLS = 2000
SHOWN = 10


def run() -> dict[str, list[Line]]:
    """The dearest functions by what was profiled; of the import, the guard's modules."""
    from checkouts import checkout
    from inprocess import checkouts, guarded, serve

    from wsgi_dbguard import guard
    from wsgi_dbguard.lab.postgres import PostgreSQL

    with PostgreSQL() as server:
        engine = create_engine(server.url())
        guard(engine)
        found = {
            "checkout + checkin, psycopg2": _profiled(checkout(engine)),
            "request with one query, psycopg2": _profiled(serve(guarded(checkouts(engine, 1), engine))),
        }
        engine.dispose()
        command = [sys.executable, str(FORKS), "profile", server.url(), "10", "10", "1"]
        told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        found["in the child after a fork, 10 x 10 connections"] = told[0]
    found["import"] = _imported()
    return found


def lines(profile: cProfile.Profile, calls: int) -> list[Line]:
    """The dearest functions, per call of what was profiled."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    found = [
        (f"{name} ({Path(file).name}:{line})" if line else name, own / calls * 1e6, round(number / calls))
        for (file, line, name), (_, number, own, _, _) in stats.items()
    ]
    return sorted(found, key=lambda line: -line[1])[:SHOWN]


def _profiled(call: Callable[[], object]) -> list[Line]:
    call()
    profile = cProfile.Profile(time.thread_time)
    with profile:
        for _ in range(CALLS):
            call()
    return lines(profile, CALLS)


def compiling(cache: str) -> dict[str, str]:
    """The environment of a process that keeps what it compiles in `cache`, whatever ours says about that."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "PYTHONPYCACHEPREFIX": cache}


def _imported() -> list[Line]:
    command = [sys.executable, "-X", "importtime", "-c", "import sqlalchemy.orm, wsgi_dbguard"]
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):  # the first compiles
            done = subprocess.run(command, env=compiling(cache), capture_output=True, text=True, check=True)
    found = []
    for line in done.stderr.splitlines():
        own, _, name = line.removeprefix("import time:").split("|")
        if name.strip().startswith("wsgi_dbguard"):
            found.append((name.strip(), float(own), 1))
    return sorted(found, key=lambda line: -line[1])[:SHOWN]
