"""A write that is refused as read-only: the application's own doing, or the server's? On real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import flask
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.drivers import DRIVERS, Driver
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.replication import PostgreSQLPair

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PATIENCE = 60.0  # seconds
Server = PostgreSQL | MariaDB
Work = Callable[["Site"], object]
each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=str)
of_postgresql = pytest.mark.parametrize("driver", [each for each in DRIVERS if each.database == "postgresql"], ids=str)
of_mariadb = pytest.mark.parametrize("driver", [each for each in DRIVERS if each.database == "mariadb"], ids=str)


class Site:
    """An application that does its work in each request, and how often it has run."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.runs = 0
        self.work: Work = write
        self.guarded = DBGuard(self, engine)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.runs += 1
        self.work(self)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"written"]

    def get(self) -> tuple[int, str]:
        response = Client(self.guarded).get("/", buffered=True)
        problem: Any = response.json if response.is_json else None
        return response.status_code, problem["type"].rpartition(":")[2] if problem else response.text

    @property
    def counts(self) -> tuple[int, dict[str, int]]:
        """How often it has run, and why connections were replaced."""
        [stats] = self.guarded.stats()["pools"].values()
        return self.runs, stats["replaced"]


INSERT = text("insert into written values ('once')")


def write(site: Site) -> None:
    with site.engine.begin() as connection:
        connection.execute(INSERT)


def prepared(server: Server) -> Server:
    server.query("create table if not exists written (name varchar(20))")
    server.query("delete from written")
    return server


@pytest.fixture
def site(driver: Driver, server_of: Callable[..., Server], make_engine: Callable[..., Engine]) -> Site:
    server = prepared(server_of(driver))
    return Site(make_engine(driver.url(server.url()), pool_size=2, max_overflow=0))


# The application's own doing


def after(*statements: str, commit: bool = False) -> Work:
    """A write after these."""

    def work(site: Site) -> None:
        with site.engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
            if commit:
                connection.commit()
            connection.execute(INSERT)

    return work


def with_the_option(site: Site) -> None:
    with site.engine.connect().execution_options(postgresql_readonly=True) as connection:
        connection.execute(INSERT)


def in_autocommit(site: Site) -> None:
    with site.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("set default_transaction_read_only = on")
        connection.execute(INSERT)


def recovered_by_a_savepoint(site: Site) -> None:
    with site.engine.connect() as connection:
        connection.exec_driver_sql("set transaction read only")
        try:
            with connection.begin_nested():
                connection.execute(INSERT)
        finally:
            connection.exec_driver_sql("select 1")


OF_POSTGRESQL = [
    pytest.param(after("set transaction read only"), id="SET TRANSACTION"),
    pytest.param(after("set local transaction_read_only = on"), id="SET LOCAL"),
    pytest.param(after("set default_transaction_read_only = on", commit=True), id="default"),
    pytest.param(after("set session characteristics as transaction read only", commit=True), id="SET SESSION"),
    pytest.param(with_the_option, id="postgresql_readonly"),
    pytest.param(in_autocommit, id="autocommit"),
    pytest.param(recovered_by_a_savepoint, id="savepoint"),
]
OF_MARIADB = [
    pytest.param(after("set transaction read only"), id="SET TRANSACTION"),
    pytest.param(after("start transaction read only"), id="START TRANSACTION"),
    pytest.param(after("set session transaction read only", commit=True), id="SET SESSION"),
]


def check_own(site: Site) -> None:
    with pytest.raises(DBAPIError, match=r"(?i)read.only"):
        site.get()
    site.work = write
    assert site.get() == (200, "written")
    runs, replaced = site.counts
    assert runs == 2
    assert "read_only" not in replaced


@of_postgresql
@pytest.mark.parametrize("work", OF_POSTGRESQL)
def test_a_transaction_that_the_application_made_read_only_runs_once(site: Site, work: Work) -> None:
    site.work = work
    check_own(site)


@of_mariadb
@pytest.mark.parametrize("work", OF_MARIADB)
def test_so_does_one_in_mariadb(site: Site, work: Work) -> None:
    site.work = work
    check_own(site)


def read_only(connection: Connection) -> None:
    connection.exec_driver_sql(
        "set transaction read only" if connection.dialect.name == "postgresql" else "start transaction read only"
    )


@each_driver
def test_its_own_500_stays_also_where_a_session_is_left_in_it(
    site: Site, make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """As where a framework makes a response of the error, and the session is closed with that."""
    sessions: list[Session] = []

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        site.runs += 1
        sessions.append(Session(site.engine))
        read_only(sessions[-1].connection())
        try:
            sessions[-1].execute(INSERT)
        except DBAPIError:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"its own page"]

    site.guarded = DBGuard(application, site.engine)
    assert site.get() == (500, "its own page")
    assert site.counts[0] == 1
    assert not sessions[0].in_transaction()


@each_driver
def test_and_where_the_framework_tells_of_the_error(site: Site) -> None:
    app = flask.Flask(__name__)

    @app.get("/")
    def view() -> str:
        site.runs += 1
        with site.engine.connect() as connection:
            read_only(connection)
            connection.execute(INSERT)
        return "written"

    site.guarded = DBGuard(app, site.engine)
    status, _ = site.get()
    assert (status, site.counts[0]) == (500, 1)


def test_what_was_written_before_in_mariadb_is_still_the_sessions(
    mariadb: MariaDB, make_engine: Callable[..., Engine]
) -> None:
    """The server is asked in the middle of its transaction: nothing is rolled back that nobody rolled back."""
    prepared(mariadb)
    engine = make_engine(mariadb.url())
    session = Session(engine)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        session.execute(INSERT)
        try:
            session.execute(text("signal sqlstate '25006' set mysql_errno = 1792"))
        except DBAPIError:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"its own page"]

    guarded = DBGuard(application, engine, leaks="off", replay="off")
    assert Client(guarded).get("/").status_code == 500
    session.commit()
    assert mariadb.query("select * from written") == [("once",)]


# A failover


@pytest.fixture
def of_its_own() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


def check_failover(site: Site) -> None:
    """At the second attempt the address may lead elsewhere; here it leads to the same server."""
    assert site.get() == (503, "unavailable")
    runs, replaced = site.counts
    assert runs == 2
    assert "read_only" in replaced


@of_postgresql
def test_a_server_that_has_become_read_only_by_default_is_left(
    driver: Driver, of_its_own: PostgreSQL, make_engine: Callable[..., Engine]
) -> None:
    prepared(of_its_own)
    site = Site(make_engine(driver.url(of_its_own.url()), pool_size=1, max_overflow=0))
    assert site.get() == (200, "written")
    site.runs = 0
    of_its_own.query("alter system set default_transaction_read_only = on")
    of_its_own.query("select pg_reload_conf()")

    def demoted() -> bool:
        with site.engine.connect() as connection:
            return connection.exec_driver_sql("show default_transaction_read_only").scalar() == "on"

    wait_until(demoted, timeout=PATIENCE, what="the demotion")
    check_failover(site)


@of_postgresql
def test_a_standby_is_left(driver: Driver, make_engine: Callable[..., Engine]) -> None:
    with PostgreSQLPair() as pair:
        prepared(pair.primary)
        pair.caught_up()
        site = Site(make_engine(driver.url(pair.replica.url()), pool_size=1, max_overflow=0))
        with site.engine.connect():
            pass
        check_failover(site)
        site.engine.dispose()


@of_mariadb
@pytest.mark.parametrize("variable", ["read_only", "tx_read_only"])
def test_a_mariadb_that_has_become_read_only_is_left(
    site: Site, driver: Driver, server_of: Callable[..., Server], variable: str
) -> None:
    server = server_of(driver)
    assert site.get() == (200, "written")
    site.runs = 0
    server.query(f"set global {variable} = on")
    try:
        if variable == "tx_read_only":  # of those that are opened from now on
            site.engine.dispose()
            with site.engine.connect():
                pass
        check_failover(site)
    finally:
        server.query(f"set global {variable} = off")
