"""What the guard needs of each driver, on a real connection: its socket, and no answer left behind by an interrupt."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, event, text

from wsgi_dbguard import guard, sockets
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.interrupts import interrupt
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.rows import Rows
from wsgi_dbguard.lab.stage import Stage


@pytest.fixture(params=DRIVERS, ids=str)
def driver(request: pytest.FixtureRequest) -> Driver:
    one: Driver = request.param
    if reason := one.missing():
        pytest.skip(reason)
    return one


def stage_of(rows: Rows, driver: Driver) -> Stage:
    try:
        return rows.stage(driver.database)
    except ServerMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def engine(rows: Rows, driver: Driver) -> Iterator[Engine]:
    engine = create_engine(driver.url(stage_of(rows, driver).url))
    yield engine
    engine.dispose()


def test_fileno_is_the_socket_to_the_server(rows: Rows, driver: Driver, engine: Engine) -> None:
    connection = engine.raw_connection()
    fd = sockets.fileno(connection.dbapi_connection)
    if fd is None and driver.name == "mysql-connector":
        pytest.skip("its C extension does not tell")
    assert fd is not None
    with socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM) as copy:
        assert copy.getpeername() == stage_of(rows, driver).address
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pg8000", "mysql-connector"])
def test_a_driver_in_python_is_mended_after_an_interrupt_that_sqlalchemy_does_not_see(rows: Rows, name: str) -> None:
    driver = driver_named(name)
    if reason := driver.missing():
        pytest.skip(reason)
    url = driver.url(stage_of(rows, driver).url)
    unguarded, guarded = interrupt("KeyboardInterrupt", [(url, "nothing"), (url, "guard")])
    assert unguarded["failed"] + unguarded["wrong"] > 0, unguarded
    assert (guarded["failed"], guarded["wrong"]) == (0, 0), guarded
    assert guarded["interrupted"] > 0


def test_timeout_of_the_socket_condemns_the_pool_though_sqlalchemy_takes_it_for_an_interrupt(
    rows: Rows, driver: Driver, engine: Engine
) -> None:
    def lost(cursor: object, statement: str, *others: object) -> None:
        if statement == "select 'lost'":
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))  # as pg8000 does

    pool_guard = guard(engine)
    event.listen(engine, "do_execute", lost)
    with engine.connect(), engine.connect() as connection, pytest.raises(TimeoutError):
        connection.exec_driver_sql("select 'lost'")
    with engine.connect() as connection, engine.connect() as other:
        assert connection.scalar(text("select 1")) == other.scalar(text("select 1")) == 1
    stats = pool_guard.stats()
    assert (stats["invalidations"], stats["replaced"]) == (1, {"condemned": 1})
