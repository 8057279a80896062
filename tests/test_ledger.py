"""What clients were told, held against what the database has, while their connections are killed."""

from __future__ import annotations

import pytest

from wsgi_dbguard.lab.ledger import FAULTS, MOMENTS, RIGHT, ledger
from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("driver", ["psycopg2", "pymysql"])
def test_no_row_is_lost_and_none_is_doubled(driver: str) -> None:
    try:
        server = PostgreSQL() if driver == "psycopg2" else MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server as database:
        outcome = ledger(database, driver, requests=1000)
    assert set(outcome.found) == RIGHT, outcome.found  # and every kind has come up
    assert set(outcome.struck) == {(moment, fault) for moment in MOMENTS for fault in FAULTS}
    assert outcome.again > 20
