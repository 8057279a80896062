"""COMMIT and ROLLBACK on a server that is stopped: its kernel acknowledges all that is sent, and nobody answers.

With a deadline neither makes a request wait for longer than what is left of it, and `ping_timeout` more.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.postgres import PostgreSQL

from .stopping import (
    DEADLINE,
    LONG,
    PATIENCE,
    PING_TIMEOUT,
    Server,
    Site,
    ask,
    insert,
    instead,
    kind,
    replaced,
    site_of,
    stopped,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def drivers(*names: str) -> pytest.MarkDecorator:
    """Each test waits for two seconds, so of all but the first driver it is a slow one."""
    first, *others = map(driver_named, names)
    return pytest.mark.parametrize(
        "driver", [first, *(pytest.param(each, marks=pytest.mark.slow) for each in others)], ids=str
    )


each_driver = drivers(*(each.name for each in DRIVERS))
two_drivers = drivers("psycopg2", "pymysql")


@pytest.fixture
def site(driver: Driver, server_of: Callable[..., Server]) -> Iterator[Site]:
    with site_of(driver, server_of(driver)) as site:
        yield site


@each_driver
def test_a_commit_that_is_not_answered_is_in_doubt(site: Site) -> None:
    response, seconds = ask(site, insert, method="POST", replay="uncommitted")
    assert (response.status_code, kind(response)) == (503, "outcome-unknown")
    assert "Retry-After" not in response.headers
    assert PING_TIMEOUT <= seconds < LONG
    assert len(site.server.query("select * from ended")) <= 1
    assert replaced(site) == ({}, 0)  # SQLAlchemy has thrown it away itself, and its siblings are well


@each_driver
def test_a_rollback_that_is_not_answered_fails_nobody(site: Site) -> None:
    """The one by which SQLAlchemy's Connection ends, when all that was asked is answered."""

    def view(site: Site) -> Iterable[bytes]:
        with site.engine.connect() as connection:
            connection.execute(text("INSERT INTO ended VALUES ('undone')"))
            answer = f"there was {connection.scalar(text('SELECT count(*) FROM ended'))}"
            site.server.pause()
        return [answer.encode()]

    response, seconds = ask(site, view)
    assert (response.status_code, response.text) == (200, "there was 1")
    assert PING_TIMEOUT <= seconds < LONG
    assert site.server.query("select * from ended") == []
    assert replaced(site) == ({"deadline": 1}, 0)


@each_driver
def test_nor_does_the_one_on_return_to_the_pool(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    def view(site: Site) -> Iterable[bytes]:
        connection = site.engine.raw_connection()
        connection.cursor().execute("INSERT INTO ended VALUES ('undone')")
        site.server.pause()
        connection.close()
        return [b"closed"]

    response, seconds = ask(site, view)
    assert (response.status_code, response.text) == (200, "closed")
    assert PING_TIMEOUT <= seconds < LONG
    assert site.server.query("select * from ended") == []
    assert replaced(site) == ({"deadline": 1}, 0)
    assert "Exception during reset" not in caplog.text


@two_drivers
def test_a_session_is_rolled_back_once_and_without_a_word_of_the_pools(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def view(site: Site) -> Iterable[bytes]:
        with Session(site.engine) as session:
            session.execute(text("INSERT INTO ended VALUES ('undone')"))
            site.server.pause()
            session.rollback()
        return [b"rolled back"]

    response, seconds = ask(site, view)
    assert (response.status_code, response.text) == (200, "rolled back")
    assert PING_TIMEOUT <= seconds < LONG
    told = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "a ROLLBACK was cut off" in told[0]


@two_drivers
def test_what_comes_after_it_is_not_sent(site: Site) -> None:
    def view(site: Site) -> Iterable[bytes]:
        with site.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            site.server.pause()
            connection.rollback()
            connection.execute(text("SELECT 1"))
        return [b"never"]

    response, seconds = ask(site, view)
    assert (response.status_code, kind(response)) == (503, "unavailable")
    assert PING_TIMEOUT <= seconds < LONG


@two_drivers
def test_an_error_of_the_statements_own_stays_what_it_was(site: Site) -> None:
    def view(site: Site) -> Iterable[bytes]:
        with site.engine.connect() as connection:
            connection.execute(text("INSERT INTO ended VALUES (NULL)"))  # begins the transaction
            try:
                connection.execute(text("INSERT INTO no_such_table VALUES (1)"))
            finally:
                site.server.pause()
        return [b"never"]

    begun = time.monotonic()
    with pytest.raises(ProgrammingError, match="no_such_table"):
        ask(site, view)
    assert PING_TIMEOUT <= time.monotonic() - begun < LONG


class Streamed:
    """A response that the server closes."""

    def __init__(self) -> None:
        self.chunks = iter([b"left", b" behind"])

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def close(self) -> None:
        """Nothing of the application's."""


@two_drivers
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "as a list"])
def test_a_session_that_a_request_leaves_is_rolled_back_in_time(site: Site, streamed: bool) -> None:
    kept: list[Session] = []

    def view(site: Site) -> Iterable[bytes]:
        kept.append(Session(site.engine))
        kept[0].execute(text("INSERT INTO ended VALUES ('undone')"))
        site.server.pause()
        return Streamed() if streamed else [b"left behind"]

    response, seconds = ask(site, view)
    assert (response.status_code, response.text) == (200, "left behind")
    assert PING_TIMEOUT <= seconds < LONG
    assert not kept[0].in_transaction()
    assert site.server.query("select * from ended") == []


@drivers("pg8000", "pymysql")
def test_what_puts_an_isolation_level_back_is_cut_off_too(site: Site) -> None:
    """On the way to the pool, when the connection's ROLLBACK has been answered."""

    def view(site: Site) -> Iterable[bytes]:
        with site.engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
            connection.execute(text("SELECT 1"))
            instead(site.engine, "do_rollback", after=site.server.pause)
        return [b"closed"]

    response, seconds = ask(site, view)
    assert (response.status_code, response.text) == (200, "closed")
    assert PING_TIMEOUT <= seconds < LONG


@two_drivers
def test_the_inner_requests_time_is_the_outer_ones(site: Site) -> None:
    inner = DBGuard(site, site.engine, ping_timeout=PING_TIMEOUT)

    def outer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        told.append(kind(Client(inner).open("/", method="POST", buffered=True)))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"well"]

    told: list[str] = []
    site.view = insert
    guarded = DBGuard(outer, site.engine, deadline=DEADLINE, ping_timeout=PING_TIMEOUT)
    with stopped(site.server):
        begun = time.monotonic()
        assert Client(guarded).get("/").status_code == 200
        assert PING_TIMEOUT <= time.monotonic() - begun < LONG
    assert told == ["outcome-unknown"]


@drivers("psycopg2")
def test_outside_a_request_nothing_is_cut_off(site: Site) -> None:
    DBGuard(site, site.engine, deadline=0.1, ping_timeout=0.1)
    with site.engine.connect() as connection, stopped(site.server):
        connection.execute(text("INSERT INTO ended VALUES ('once')"))
        site.server.pause()
        soon = threading.Timer(1.0, site.server.resume)
        soon.start()
        connection.commit()
        soon.join()
    assert site.server.query("select * from ended") == [("once",)]
    assert replaced(site) == ({}, 0)


@two_drivers
@pytest.mark.parametrize("phase", ["prepare", "commit"])
def test_a_commit_in_two_phases_is_in_doubt_in_either(site: Site, phase: str, caplog: pytest.LogCaptureFixture) -> None:
    """SQLAlchemy's MySQL dialects send statements for it: not to be cancelled all the same."""
    server = site.server
    if isinstance(server, PostgreSQL) and server.query("show max_prepared_transactions") == [("0",)]:
        server.query("alter system set max_prepared_transactions = 4")
        server.restart()

    def view(site: Site) -> Iterable[bytes]:
        with site.engine.connect() as connection:
            transaction = connection.begin_twophase()
            connection.execute(text("INSERT INTO ended VALUES ('once')"))
            if phase == "commit":
                transaction.prepare()
            server.pause()
            transaction.commit()
        return [b"saved"]

    response, seconds = ask(site, view, method="POST")
    assert (response.status_code, kind(response)) == (503, "outcome-unknown")
    assert PING_TIMEOUT <= seconds < LONG
    assert "a query was" not in caplog.text
    # Others are not to wait for its locks.
    if isinstance(server, PostgreSQL):
        for (name,) in server.query("select gid from pg_prepared_xacts"):
            server.query(f"rollback prepared '{name}'")
    else:
        for *_, name in server.query("xa recover"):
            server.query("xa rollback %s", name)


@drivers("pymysql", "mysqlclient")
def test_a_driver_s_mode_that_cannot_be_put_back_is_not_waited_for(site: Site) -> None:
    """At the checkout of the next request, by the guard: for PyMySQL and mysqlclient that is a round trip."""

    def leave(site: Site) -> Iterable[bytes]:
        with site.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            driver: Any = connection.connection.dbapi_connection
            driver.autocommit(True)
        return [b"left"]

    def view(site: Site) -> Iterable[bytes]:
        with site.engine.connect():
            return [b"never"]

    guarded = DBGuard(site, site.engine, deadline=DEADLINE, ping_timeout=PING_TIMEOUT, connect_timeout=2.0)
    site.view = leave
    assert Client(guarded).get("/").text == "left"
    site.view = view
    with stopped(site.server):
        site.server.pause()
        begun = time.monotonic()
        response = Client(guarded).get("/", buffered=True)
        seconds = time.monotonic() - begun
    assert (response.status_code, kind(response)) == (503, "unavailable")
    assert PING_TIMEOUT <= seconds < LONG


PROGRAM = """
import gevent.monkey
gevent.monkey.patch_all()
import sys
from sqlalchemy import create_engine, text
from werkzeug.test import Client
from wsgi_dbguard import DBGuard

engine = create_engine(sys.argv[1])

def application(environ, start_response):
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO ended VALUES ('once')"))
        print("stop it", flush=True)
        input()
        connection.commit()

response = Client(DBGuard(application, engine, deadline=1.0, ping_timeout=1.0)).post("/")
print(response.status_code, response.json["type"], flush=True)
"""


@pytest.mark.slow
@two_drivers
def test_under_gevent_it_is_cut_off_by_a_thread(site: Site) -> None:
    """A driver in C blocks the event loop, one in Python waits for it."""
    url = site.engine.url.render_as_string(hide_password=False)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, url], text=True, **pipes) as program, stopped(site.server):  # type: ignore[call-overload]
        assert program.stdout.readline() == "stop it\n"
        site.server.pause()
        begun = time.monotonic()
        answer, _ = program.communicate("stopped\n", timeout=PATIENCE)
        assert PING_TIMEOUT <= time.monotonic() - begun < LONG
    assert answer == "503 urn:wsgi-dbguard:outcome-unknown\n"
