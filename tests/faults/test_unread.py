"""An answer that nobody has read lies on a connection of MariaDB: who takes it next must not have it for an answer."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from wsgi_dbguard import guard
from wsgi_dbguard.lab.drivers import DRIVERS, Driver
from wsgi_dbguard.lab.mariadb import MariaDB

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


def test_what_a_procedure_leaves_is_nobodys_answer(mariadb: MariaDB, make_engine: MakeEngine) -> None:
    """mysql-connector leaves the end of CALL unread."""
    pytest.importorskip("mysql.connector")
    engine = make_engine(mariadb.url("mysql-connector"))
    guard(engine)
    mariadb.query("create or replace procedure leaves() select 'theirs'")
    try:
        for _ in range(5):
            with engine.connect() as connection:
                assert connection.exec_driver_sql("call leaves()").scalar() == "theirs"
            with engine.connect() as connection:
                assert connection.scalar(MINE) == "mine"
    finally:
        mariadb.query("drop procedure leaves")
