"""TLS that one side does not take as the other has it is no outage: waiting heals nothing. A cut handshake is one."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url

from wsgi_dbguard import DatabaseUnavailable, guard
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.provision import self_signed
from wsgi_dbguard.lab.proxy import FaultProxy

pytestmark = pytest.mark.slow

Server = PostgreSQL | MariaDB


def checked_by(driver: str, file: Path) -> dict[str, Any]:
    """What a driver is told, so that it takes no certificate but those in `file`."""
    if driver in ("psycopg2", "psycopg"):
        return {"sslmode": "verify-full", "sslrootcert": str(file)}
    if driver == "pg8000":
        return {"ssl_context": ssl.create_default_context(cafile=str(file))}
    if driver in ("pymysql", "mysqlclient"):
        return {"ssl": {"ca": str(file)}}
    return {"ssl_ca": str(file), "ssl_verify_cert": True}


def engine_to(server: Server, driver: Driver, arguments: dict[str, Any], port: int | None = None) -> Engine:
    """Without what the server's own URL says of TLS."""
    url = make_url(server.url_through(server.host, port or server.port, driver.name)).set(query={})
    return create_engine(url, connect_args=arguments)


def refusal(engine: Engine) -> Exception:
    """What the application gets, at once, of an engine that it would wait for while its database is away."""
    attempts = []
    event.listen(engine, "do_connect", lambda *_: attempts.append(1))
    pool_guard = guard(engine, hold=3.0)
    with pytest.raises(Exception) as error:  # noqa: PT011
        engine.connect()
    assert not isinstance(error.value, DatabaseUnavailable)
    assert (len(attempts), pool_guard.stats()["outages"]) == (1, 0)
    return error.value


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_a_certificate_that_nobody_vouches_for_is_the_applications_error(
    server_of: Callable[..., Server], driver: Driver, tmp_path: Path
) -> None:
    self_signed(tmp_path / "other.crt", tmp_path / "other.key")
    refused = refusal(engine_to(server_of(driver, tls=True), driver, checked_by(driver.name, tmp_path / "other.crt")))
    assert "certificate" in str(refused)


@pytest.mark.parametrize("name", ["psycopg2", "psycopg", "pymysql", "mysqlclient", "mysql-connector"])
def test_a_file_that_is_not_there_is_the_applications_error(
    server_of: Callable[..., Server], name: str, tmp_path: Path
) -> None:
    driver = driver_named(name)
    refused = refusal(engine_to(server_of(driver, tls=True), driver, checked_by(name, tmp_path / "none.crt")))
    assert "does not exist" in str(refused) or "no such file" in str(refused).lower()


@pytest.mark.parametrize("name", ["psycopg2", "psycopg", "pymysql"])  # mysqlclient and mysql-connector do without it
def test_a_server_without_tls_is_the_applications_error(
    server_of: Callable[..., Server], name: str, tmp_path: Path
) -> None:
    self_signed(tmp_path / "any.crt", tmp_path / "any.key")
    driver = driver_named(name)
    refused = refusal(engine_to(server_of(driver), driver, checked_by(name, tmp_path / "any.crt")))
    assert "SSL" in str(refused)


@pytest.mark.parametrize("name", ["psycopg2", "psycopg"])
def test_a_client_without_tls_is_the_applications_error(name: str) -> None:
    with PostgreSQL(tls=True) as server:
        rules = server.directory / "pg_hba.conf"
        rules.write_text("local all all trust\nhostssl all all 127.0.0.1/32 trust\n")
        server.restart()
        refused = refusal(engine_to(server, driver_named(name), {"sslmode": "disable"}))
    assert "no encryption" in str(refused)


@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_a_handshake_that_is_cut_is_an_outage(server_of: Callable[..., Server], driver: Driver) -> None:
    server = server_of(driver, tls=True)
    with FaultProxy(server.host, server.port) as proxy:
        engine = engine_to(server, driver, checked_by(driver.name, server.certificate), proxy.port)
        # The request for TLS has 8 or 36 bytes, the ClientHello some hundreds.
        event.listen(engine, "do_connect", lambda *_: proxy.drop_after(100))
        pool_guard = guard(engine)
        with pytest.raises(DatabaseUnavailable):
            engine.connect()
        assert pool_guard.stats()["away"]
