"""A query that is interrupted in the process (a signal's handler, gevent.Timeout) does not run on in the server.

Drivers in C are not interrupted; psycopg cancels by itself, but only for KeyboardInterrupt.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from wsgi_dbguard.lab.drivers import Driver, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import Child, wait_until

pytestmark = pytest.mark.slow

PATIENCE = 60.0  # seconds, however busy the machine; less than the query takes
PROGRAM = """
import signal, sys
from contextlib import ExitStack
kind, url, guarded, sql = sys.argv[1:]
if kind == "gevent.Timeout":
    import gevent.monkey
    gevent.monkey.patch_all()
from sqlalchemy import create_engine, text

def leave(number, frame):
    raise SystemExit(1) if kind == "SystemExit" else KeyboardInterrupt

engine = create_engine(url)
if guarded == "guarded":
    from wsgi_dbguard import guard
    guard(engine)
with engine.connect() as connection:
    connection.execute(text("select 1"))
try:
    with engine.connect() as connection, ExitStack() as stack:
        if kind == "gevent.Timeout":
            stack.enter_context(gevent.Timeout(0.5))
        else:
            signal.signal(signal.SIGUSR1, leave)  # sent when the query runs
        connection.execute(text(sql))
except Exception:
    raise
except BaseException as interrupt:
    print(type(interrupt).__name__)
if guarded == "guarded":  # on a busy machine half a second may not be enough, and the end of the process is the end
    from wsgi_dbguard import canceller
    from wsgi_dbguard.lab.process import wait_until
    wait_until(lambda: not canceller._canceller.threads, timeout=60, what="the end of the canceller's threads")
"""
SLEEP = {"postgresql": "SELECT pg_sleep(120)", "mariadb": "SELECT SLEEP(120)"}
RUNNING = {
    "postgresql": "select pid from pg_stat_activity where state = 'active' and query like 'SELECT pg_sleep%%'",
    "mariadb": "select id from information_schema.processlist where info like 'SELECT SLEEP%%'",
}
Server = PostgreSQL | MariaDB


def interrupted(kind: str, driver: Driver, server: Server, *, guarded: bool, log: Path) -> str:
    """What the program tells: the name of what came out of the query."""
    url = driver.url(server.url()).render_as_string(hide_password=False)
    command = [sys.executable, "-c", PROGRAM, kind, url, "guarded" if guarded else "unguarded", SLEEP[driver.database]]
    with Child(command, log=log) as program:
        if kind != "gevent.Timeout":
            seen = partial(server.query, RUNNING[driver.database])
            wait_until(lambda: seen() or not program.running, timeout=PATIENCE, what="the query")
            program.send(signal.SIGUSR1)
        assert program.wait(110) == 0, program.output()
        return program.output(last=1)


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "gevent.Timeout"])
@pytest.mark.parametrize("name", ["psycopg", "pg8000", "pymysql"])
def test_it_is_stopped_in_the_server(name: str, kind: str, server_of: Callable[..., Server], tmp_path: Path) -> None:
    driver = driver_named(name)
    server = server_of(driver)
    assert interrupted(kind, driver, server, guarded=True, log=tmp_path / "log") == kind.removeprefix("gevent.")
    sql = RUNNING[driver.database]
    wait_until(lambda: not server.query(sql), timeout=PATIENCE, what="the end of the query")


@pytest.mark.parametrize("name", ["pg8000", "pymysql"])
def test_without_the_guard_it_goes_on(name: str, server_of: Callable[..., Server], tmp_path: Path) -> None:
    driver = driver_named(name)
    server = server_of(driver)
    assert interrupted("SystemExit", driver, server, guarded=False, log=tmp_path / "log") == "SystemExit"
    left = [number for (number,) in server.query(RUNNING[driver.database])]
    assert left
    for number in left:
        server.terminate(number)
