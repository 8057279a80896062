"""Real gunicorns through outages of their database: restarts under load, and a database that stays down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_dbguard.lab.contenders import Contender
from wsgi_dbguard.lab.down import PROCESSES, down
from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.restarts import HOLD, restarts

pytestmark = pytest.mark.slow

SECONDS = 6.0  # that the database is down


@pytest.fixture(params=["psycopg2", "pymysql"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database(driver: str) -> Iterator[PostgreSQL | MariaDB]:
    try:
        server = PostgreSQL() if driver == "psycopg2" else MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


def test_no_request_fails_while_the_database_restarts(
    database: PostgreSQL | MariaDB, driver: str, tmp_path: Path
) -> None:
    results = restarts(database, driver, fast=2, kills=2, directory=tmp_path)
    for each in (Contender.NOTHING, Contender.PRE_PING):
        assert results[each].failed > 0
    guarded = results[Contender.GUARD]
    assert (guarded.failed, guarded.wrong) == (0, 0), guarded.errors
    assert guarded.slowest < HOLD * 2


def test_a_database_that_is_down_is_asked_now_and_then_and_everybody_is_told(
    database: PostgreSQL | MariaDB, driver: str, tmp_path: Path
) -> None:
    told = down(database, driver, seconds=SECONDS, directory=tmp_path)
    unguarded, guarded = told[Contender.PRE_PING], told[Contender.GUARD]
    assert set(unguarded.answers.statuses) == {"500"}
    assert unguarded.attempts >= unguarded.answers.requests
    assert set(guarded.answers.statuses) == {"503"}
    # Per process: threads that met the outage together, the first probes, which come sooner, then one each 1 to 3 s.
    assert guarded.attempts <= PROCESSES * (4 + 3 + SECONDS)
    assert guarded.replays <= 0.1 * guarded.answers.requests
