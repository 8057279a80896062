"""An answer that nobody has read lies on a connection of MariaDB: who takes it next must not have it for an answer."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from wsgi_dbguard import guard
from wsgi_dbguard.lab.drivers import DRIVERS, Driver
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.proxy import FaultProxy

MakeEngine = Callable[..., Engine]
MINE = text("select 'mine'")


def packet(statement: str) -> bytes:
    """COM_QUERY, the first packet of an exchange."""
    body = b"\x03" + statement.encode()
    return len(body).to_bytes(3, "little") + b"\0" + body


@pytest.mark.parametrize("driver", [each for each in DRIVERS if each.database == "mariadb"], ids=str)
@pytest.mark.parametrize("statement", ["do 1", "select 'theirs'"])
def test_it_is_replaced_and_nobody_gets_the_answer(
    mariadb: MariaDB, make_engine: MakeEngine, driver: Driver, statement: str
) -> None:
    if reason := driver.missing():
        pytest.skip(reason)
    engine = make_engine(mariadb.url(driver.name))
    pool_guard = guard(engine)
    for count in (1, 2, 3):
        with engine.connect() as connection:
            assert connection.scalar(MINE) == "mine"
        (link,) = pool_guard.links()
        if link.fd is None:
            pytest.skip("this driver does not tell its socket")
        os.write(link.fd, packet(statement))
        assert select.select([link.fd], [], [], 60.0)[0]
        with engine.connect() as connection:
            assert connection.scalar(MINE) == "mine"
        assert pool_guard.stats()["replaced"] == {"unread": count}
    assert pool_guard.stats()["invalidations"] == 0


@pytest.fixture
def connector(mariadb: MariaDB, make_engine: MakeEngine) -> Iterator[Engine]:
    """mysql-connector, which leaves the end of a CALL unread; whatever the server answers is on its way for a while."""
    pytest.importorskip("mysql.connector")
    mariadb.query("create or replace procedure leaves() select 'theirs'")
    mariadb.query(
        "create or replace procedure fails() begin select 'theirs'; select 'more'; signal sqlstate '45000'; end"
    )
    mariadb.query("create or replace procedure waits() begin select 'theirs'; do sleep(0.3); end")
    with FaultProxy(mariadb.host, mariadb.port) as proxy:
        proxy.delay(0.01)
        yield make_engine(mariadb.url_through(proxy.host, proxy.port, "mysql-connector"))
    mariadb.query("drop procedure leaves")
    mariadb.query("drop procedure fails")
    mariadb.query("drop procedure waits")


@pytest.mark.parametrize("procedure", ["leaves", "fails"])
def test_what_a_procedure_leaves_is_nobodys_answer(connector: Engine, procedure: str) -> None:
    pool_guard = guard(connector)
    for _ in range(3):
        with connector.begin() as connection:
            assert connection.exec_driver_sql(f"call {procedure}()").scalar() == "theirs"
        with connector.connect() as connection:
            assert connection.exec_driver_sql(f"call {procedure}()").scalar() == "theirs"
            assert connection.scalar(MINE) == "mine"
    assert (pool_guard.stats()["connects"], pool_guard.stats()["replaced"]) == (1, {})


def test_what_a_procedure_says_after_its_first_result_can_be_read(connector: Engine) -> None:
    guard(connector)
    connection = connector.raw_connection()
    cursor = connection.cursor()
    cursor.execute("call fails()")
    assert cursor.fetchall() == [("theirs",)]
    assert cursor.nextset()
    assert cursor.fetchall() == [("more",)]
    with pytest.raises(connector.dialect.loaded_dbapi.DatabaseError, match="45000"):
        cursor.nextset()
    cursor.execute("select 'mine'")
    assert cursor.fetchall() == [("mine",)]
    connection.close()


def test_a_connection_that_is_lost_while_the_rest_is_read_is_lost(connector: Engine, mariadb: MariaDB) -> None:
    pool_guard = guard(connector)
    with connector.connect() as connection:
        connection.exec_driver_sql("call leaves()").scalar()
        driver: Any = connection.connection.dbapi_connection
        mariadb.terminate(driver.connection_id)
        with pytest.raises(OperationalError) as raised:
            connection.scalar(MINE)
    assert raised.value.connection_invalidated
    with connector.connect() as connection:
        assert connection.scalar(MINE) == "mine"
    assert pool_guard.stats()["invalidations"] == 1


@pytest.mark.parametrize("statement", ["call waits()", "do sleep(0.3)"])
def test_a_connection_on_which_an_answer_came_too_late_is_lost(connector: Engine, statement: str) -> None:
    """The driver says that itself, "the current connection has been closed", and leaves it open."""
    pool_guard = guard(connector)
    driver = connector.dialect.loaded_dbapi
    connection = connector.raw_connection()
    connection.dbapi_connection._read_timeout = 0.2  # type: ignore[union-attr]  # as an argument it takes whole seconds
    with pytest.raises(driver.errors.ReadTimeoutError):  # noqa: PT012
        cursor = connection.cursor()
        cursor.execute(statement)
        assert cursor.fetchall() == [("theirs",)]
        connection.commit()
    with pytest.raises(driver.OperationalError):
        connection.cursor().execute("select 'mine'")
    connection.close()
    with connector.connect() as mine:
        assert mine.scalar(MINE) == "mine"
    assert (pool_guard.stats()["connects"], pool_guard.stats()["replaced"]) == (2, {})


def test_an_interrupt_ends_the_connection_that_there_is(connector: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver has connected anew; the descriptor that it had before belongs to somebody else by now."""
    guard(connector)
    first, second = connector.raw_connection(), connector.raw_connection()
    driver: Any = first.dbapi_connection
    fd = driver._socket.sock.fileno()
    driver.close()
    os.dup2(second.dbapi_connection._socket.sock.fileno(), fd)  # type: ignore[union-attr]
    try:
        driver.connect()

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(driver._socket, "recv", interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.cursor().execute("select 'theirs'")
        monkeypatch.undo()
        with pytest.raises(connector.dialect.loaded_dbapi.OperationalError):
            first.cursor().execute("select 'theirs'")
        cursor = second.cursor()
        cursor.execute("select 'mine'")
        assert cursor.fetchall() == [("mine",)]
    finally:
        os.close(fd)
        first.invalidate()
        second.close()
