"""Real gunicorns under load while their database restarts. Of one that stays down tells the story S9."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_dbguard.lab.contenders import Contender
from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.restarts import HOLD, restarts

pytestmark = pytest.mark.slow


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
    results = restarts(database, driver, fast=1, kills=1, directory=tmp_path)
    for each in (Contender.NOTHING, Contender.PRE_PING):
        assert results[each].failed > 0
    guarded = results[Contender.GUARD]
    assert (guarded.failed, guarded.wrong) == (0, 0), guarded.errors
    assert guarded.slowest < HOLD * 2
