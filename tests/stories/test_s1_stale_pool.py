"""S1, the stale pool: random 500s that do not repeat, from a server that is healthy and a pool that holds dead
connections. Flask, Flask-SQLAlchemy, gunicorn, PostgreSQL.

Beside the application a script inserts a row each time the fault has struck, and never fails: the database is well.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgi_dbguard.lab.load import LoadGenerator, LoadResult
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.servers import gunicorn

pytestmark = pytest.mark.slow

SITE = Path(__file__).parents[2] / "deploy"
ROUNDS = 3


@pytest.mark.parametrize(("app", "guarded"), [("app:create_app()", False), ("wsgi:application", True)])
def test_dead_connections_in_the_pool(app: str, guarded: bool, postgres: PostgreSQL, tmp_path: Path) -> None:
    postgres.query("create table if not exists heartbeat (at timestamptz default now())")
    failed, requests = 0, 0
    with gunicorn(
        app,
        "--worker-class=gthread",
        "--workers=2",
        "--threads=4",
        guarded=guarded,
        directory=tmp_path,
        path=[SITE],
        config=SITE / "gunicorn.conf.py",
        DATABASE_URL=postgres.url("psycopg2"),
    ) as server:
        url = server.ready()
        assert burst(url).failed == 0
        for _ in range(ROUNDS):
            # A worker gives a connection back when it has answered.
            wait_until(postgres.terminate, timeout=60, what="idle connections")
            postgres.query("insert into heartbeat default values")
            result = burst(url)
            failed += result.failed
            requests += result.requests
            # The 500s do not repeat. Unguarded, once both workers have met theirs.
            wait_until(lambda: burst(url).failed == 0, timeout=0 if guarded else 60, what="a burst without errors")
    assert requests == 100 * ROUNDS
    if guarded:
        assert failed == 0
    else:
        assert 0 < failed < requests


def burst(url: str) -> LoadResult:
    return LoadGenerator(f"{url}/echo?token={{token}}", requests=100).run()
