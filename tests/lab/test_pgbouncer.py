"""PgBouncer, what is its own; what it has in common with HAProxy is in test_middlemen.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from wsgi_dbguard.lab import provision
from wsgi_dbguard.lab.pgbouncer import PgBouncer
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

try:
    provision.program("pgbouncer", package="pgbouncer")
except ServerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

BACKEND = text("select pg_backend_pid()")


@pytest.fixture
def pooler(database: PostgreSQL) -> Iterator[PgBouncer]:
    with PgBouncer(database) as running:
        yield running


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_url_connects_sqlalchemy_to_the_server_behind(database: PostgreSQL, driver: str, mode: str) -> None:
    with PgBouncer(database, mode="session" if mode == "session" else "transaction") as pooler:
        with create_engine(pooler.url(driver), poolclass=NullPool).connect() as connection:
            assert connection.execute(text("select current_user, current_database()")).one() == ("dbguard", "dbguard")
            [backend] = database.backends()
            assert connection.scalar(BACKEND) == backend
        assert "running" in repr(pooler)


def test_transaction_mode_shares_a_backend_and_session_mode_does_not(database: PostgreSQL) -> None:
    for mode, shared in (("transaction", True), ("session", False)):
        with PgBouncer(database, mode="session" if mode == "session" else "transaction") as pooler:
            engine = create_engine(pooler.url())
            with engine.connect() as one, engine.connect() as other:
                with one.begin():
                    first = one.scalar(BACKEND)
                with other.begin():
                    second = other.scalar(BACKEND)
            assert (first == second) is shared
            engine.dispose()


def test_clients_socket_survives_the_death_of_the_backend(database: PostgreSQL, pooler: PgBouncer) -> None:
    engine = create_engine(pooler.url(), pool_size=1)
    with engine.connect() as connection:
        before = connection.scalar(BACKEND)
    assert database.terminate() == 1
    with engine.connect() as connection:
        assert connection.scalar(BACKEND) != before
    engine.dispose()


def test_settings_reach_it(database: PostgreSQL) -> None:
    with PgBouncer(database, settings={"max_client_conn": "1"}) as pooler:
        engine = create_engine(pooler.url(), poolclass=NullPool)
        with engine.connect(), pytest.raises(OperationalError, match="max_client_conn"):
            engine.connect()
