"""A query that takes two minutes, behind a deadline of one second: every kind of worker, every driver, real servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wsgi_dbguard.lab.deadlines import DEADLINE, PATIENCE, SERVERS, Outcome, abort, overrun
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

pytestmark = pytest.mark.slow

TIMEOUT = 6  # seconds after which gunicorn aborts: more than a worker needs to begin on a busy machine

Server = PostgreSQL | MariaDB


# Every driver with workers of one thread, and where a driver in C blocks the event loop. Threads of Python's making, in
# gunicorn or uWSGI, are the same to a driver: one in Python, one in C, of each database.
THREADED = [driver_named(name) for name in ("psycopg2", "pg8000", "pymysql", "mysqlclient")]
OVERRUN = [
    (name, driver)
    for name in SERVERS
    for driver in (DRIVERS if name in ("gunicorn sync", "gunicorn gevent") else THREADED)
]


@pytest.mark.parametrize(("name", "driver"), OVERRUN, ids=str)
def test_it_is_answered_stopped_in_the_database_and_the_next_request_is_right(
    name: str, driver: Driver, server_of: Callable[..., Server], tmp_path: Path
) -> None:
    outcome = overrun(SERVERS[name], driver, server_of(driver), directory=tmp_path)
    assert (outcome.status, outcome.kind, outcome.right) == (503, "unavailable", True), outcome
    assert DEADLINE <= outcome.seconds < PATIENCE / 2


# A driver in C blocks the event loop of gevent, and so the worker's sign of life.
BLOCKED = [("gunicorn sync", driver) for driver in DRIVERS] + [
    ("gunicorn gevent", driver_named(name)) for name in ("psycopg2", "mysqlclient")
]


@pytest.mark.parametrize(("name", "driver"), BLOCKED, ids=str)
def test_a_worker_is_aborted_and_its_query_ends(
    name: str, driver: Driver, server_of: Callable[..., Server], tmp_path: Path
) -> None:
    check(abort(SERVERS[name], driver, server_of(driver), guarded=True, directory=tmp_path))


def test_gunicorn_aborts_a_worker_that_takes_too_long_and_its_query_ends(
    server_of: Callable[..., Server], tmp_path: Path
) -> None:
    driver = driver_named("psycopg2")
    check(abort(SERVERS["gunicorn sync"], driver, server_of(driver), guarded=True, timeout=TIMEOUT, directory=tmp_path))


def check(outcome: Outcome) -> None:
    assert outcome.status in (0, 500)  # gunicorn's
    assert outcome.right


def test_without_the_guard_the_query_goes_on(server_of: Callable[..., Server], tmp_path: Path) -> None:
    driver = driver_named("psycopg2")
    database = server_of(driver)
    try:
        with pytest.raises(TimeoutError, match="end of the query"):
            abort(
                SERVERS["gunicorn sync"],
                driver,
                database,
                guarded=False,
                timeout=TIMEOUT,
                patience=1.0,
                directory=tmp_path,
            )
    finally:
        clear(driver, database)


def clear(driver: Driver, database: Server) -> None:
    """End what is left of the queries, for the tests that come after."""
    sql = {
        "postgresql": "select pid from pg_stat_activity where query like 'SELECT pg_sleep%%'",
        "mariadb": "select id from information_schema.processlist where info like 'SELECT sleep%%'",
    }
    for (number,) in database.query(sql[driver.database]):
        database.terminate(number)
