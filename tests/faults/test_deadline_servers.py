"""A query that takes two minutes, behind a deadline of one second: every kind of worker, every driver, real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from wsgi_dbguard.lab.deadlines import DEADLINE, PATIENCE, SERVERS, abort, overrun
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.provision import ServerMissing

pytestmark = pytest.mark.slow

Server = PostgreSQL | MariaDB
SERVER_OF: dict[str, Callable[[], Server]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}


@pytest.fixture(scope="module")
def database_of() -> Iterator[Callable[[Driver], Server]]:
    """The server for a driver; the test is skipped where one of both is missing."""
    running: dict[str, Server] = {}
    with ExitStack() as stack:

        def database(driver: Driver) -> Server:
            if missing := driver.missing():
                pytest.skip(missing)
            if driver.database not in running:
                try:
                    running[driver.database] = stack.enter_context(SERVER_OF[driver.database]())
                except ServerMissing as missing_server:
                    pytest.skip(str(missing_server))
            return running[driver.database]

        yield database


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
@pytest.mark.parametrize("name", SERVERS)
def test_it_is_answered_stopped_in_the_database_and_the_next_request_is_right(
    name: str, driver: Driver, database_of: Callable[[Driver], Server], tmp_path: Path
) -> None:
    outcome = overrun(SERVERS[name], driver, database_of(driver), directory=tmp_path)
    assert (outcome.status, outcome.kind, outcome.right) == (503, "unavailable", True), outcome
    assert DEADLINE <= outcome.seconds < PATIENCE / 2


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_gunicorn_aborts_a_worker_and_its_query_ends(
    driver: Driver, database_of: Callable[[Driver], Server], tmp_path: Path
) -> None:
    outcome = abort(SERVERS["gunicorn sync"], driver, database_of(driver), guarded=True, timeout=3, directory=tmp_path)
    assert outcome.status in (0, 500)  # gunicorn's
    assert outcome.right


def test_without_the_guard_the_query_goes_on(database_of: Callable[[Driver], Server], tmp_path: Path) -> None:
    driver = driver_named("psycopg2")
    database = database_of(driver)
    try:
        with pytest.raises(TimeoutError, match="end of the query"):
            abort(
                SERVERS["gunicorn sync"], driver, database, guarded=False, timeout=3, patience=3.0, directory=tmp_path
            )
    finally:
        pids = database.query("select pid from pg_stat_activity where query like 'SELECT pg_sleep%%'")
        database.terminate(*[pid for (pid,) in pids])
