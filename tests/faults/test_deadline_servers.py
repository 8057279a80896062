"""A query that takes two minutes, behind a deadline of one second: every kind of worker, every driver, real servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wsgi_dbguard.lab.deadlines import DEADLINE, PATIENCE, SERVERS, abort, overrun
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

pytestmark = pytest.mark.slow

Server = PostgreSQL | MariaDB


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
@pytest.mark.parametrize("name", SERVERS)
def test_it_is_answered_stopped_in_the_database_and_the_next_request_is_right(
    name: str, driver: Driver, server_of: Callable[..., Server], tmp_path: Path
) -> None:
    outcome = overrun(SERVERS[name], driver, server_of(driver), directory=tmp_path)
    assert (outcome.status, outcome.kind, outcome.right) == (503, "unavailable", True), outcome
    assert DEADLINE <= outcome.seconds < PATIENCE / 2


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_gunicorn_aborts_a_worker_and_its_query_ends(
    driver: Driver, server_of: Callable[..., Server], tmp_path: Path
) -> None:
    outcome = abort(SERVERS["gunicorn sync"], driver, server_of(driver), guarded=True, timeout=3, directory=tmp_path)
    assert outcome.status in (0, 500)  # gunicorn's
    assert outcome.right


def test_without_the_guard_the_query_goes_on(server_of: Callable[..., Server], tmp_path: Path) -> None:
    driver = driver_named("psycopg2")
    database = server_of(driver)
    try:
        with pytest.raises(TimeoutError, match="end of the query"):
            abort(
                SERVERS["gunicorn sync"], driver, database, guarded=False, timeout=3, patience=3.0, directory=tmp_path
            )
    finally:
        pids = database.query("select pid from pg_stat_activity where query like 'SELECT pg_sleep%%'")
        for (pid,) in pids:
            database.terminate(pid)
