"""The servers of the matrix, and silence about what is broken on purpose."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from wsgi_dbguard.lab.drivers import Driver
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.rows import Rows

Server = PostgreSQL | MariaDB


@pytest.fixture(scope="session")
def rows() -> Iterator[Rows]:
    """All rows of the matrix; each is played when it is first asked for."""
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # pg8000's close() of a dead connection fails
    with Rows() as all_rows:
        yield all_rows


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[..., Server]]:
    """`server_of(driver)`, or `server_of(driver, tls=True)`: started at its first use, of this module alone.

    The test is skipped where the driver or the server is missing.
    """
    running: dict[tuple[str, bool], Server] = {}
    with ExitStack() as stack:

        def server(driver: Driver, *, tls: bool = False) -> Server:
            if missing := driver.missing():
                pytest.skip(missing)
            key = driver.database, tls
            if key not in running:
                try:
                    made: Server = PostgreSQL(tls=tls) if driver.database == "postgresql" else MariaDB(tls=tls)
                except ServerMissing as no_server:
                    pytest.skip(str(no_server))
                stack.enter_context(made)
                running[key] = made
            return running[key]

        yield server
