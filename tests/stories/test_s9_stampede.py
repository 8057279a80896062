"""S9, the stampede: the database is down for some seconds, and every request of every worker tries to connect.

What should have been seconds becomes minutes: each request waits for its own attempt, and when the database is back it
meets all of them at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgi_dbguard.lab.contenders import Contender
from wsgi_dbguard.lab.down import PROCESSES, down
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

pytestmark = pytest.mark.slow

SECONDS = 6.0  # that the database is down
THREADS = 4  # of each worker


def test_each_request_tries_to_connect_without_the_guard_and_one_per_process_does_with_it(tmp_path: Path) -> None:
    try:
        server = PostgreSQL()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server as database:
        told = down(database, "psycopg2", seconds=SECONDS, directory=tmp_path)
    unguarded, guarded = told[Contender.PRE_PING], told[Contender.GUARD]
    assert set(unguarded.answers.statuses) == {"500"}
    assert unguarded.attempts >= unguarded.answers.requests
    assert set(guarded.answers.statuses) == {"503"}
    # Of each process: all threads that met the outage together, twice each, the first probes, which come sooner, and
    # then at most one each second.
    assert guarded.attempts <= PROCESSES * (2 * THREADS + 3 + SECONDS)
    assert guarded.replays <= 0.1 * guarded.answers.requests
