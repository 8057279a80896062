"""With `skip_idle_rollback` a ROLLBACK is sent where there may be something to roll back, and nowhere else.

That the next request does not see the difference: tests/faults/test_skipped_rollbacks.py.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, StaticPool, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.test import create_environ

from wsgi_dbguard import GuardConfig, guard, registry, transactions
from wsgi_dbguard.guards import guard_all
from wsgi_dbguard.lab.drivers import DRIVERS, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.link import Link
from wsgi_dbguard.request import Request, current

if TYPE_CHECKING:
    pass

MakeEngine = Callable[..., Engine]
Sent = Callable[[Callable[[], object]], int]


@pytest.fixture
def sent(mariadb: MariaDB) -> Sent:
    """How many a ROLLBACK the server is sent while something is done."""

    def count() -> int:
        return int(mariadb.query("show global status like 'Com_rollback'")[0][1])

    def sent(work: Callable[[], object]) -> int:
        before = count()
        work()
        return count() - before

    return sent


@pytest.fixture
def table(mariadb: MariaDB) -> Iterator[str]:
    mariadb.query("create table skipped (a int primary key) engine=InnoDB")
    mariadb.query("insert into skipped values (1)")
    yield "skipped"
    mariadb.query("drop table skipped")


def used(engine: Engine) -> Engine:
    """It has one connection, on which a ROLLBACK was sent."""
    engine.raw_connection().close()
    return engine


@pytest.fixture(params=[driver.name for driver in DRIVERS if driver.database == "mariadb"])
def engine(request: pytest.FixtureRequest, mariadb: MariaDB, make_engine: MakeEngine) -> Engine:
    if reason := driver_named(request.param).missing():
        pytest.skip(reason)
    engine = make_engine(mariadb.url(request.param), pool_size=1, max_overflow=0)
    guard(engine, skip_idle_rollback=True)
    return used(engine)


@pytest.fixture
def pymysql(mariadb: MariaDB, make_engine: MakeEngine) -> Engine:
    return make_engine(mariadb.url(), pool_size=1, max_overflow=0)


def link_of(engine: Engine) -> Link:
    [link] = [each for each in registry.links if each.guard is guard(engine)]
    return link


def raw(engine: Engine, statement: str) -> None:
    with closing(engine.raw_connection()) as proxied, closing(proxied.cursor()) as cursor:
        cursor.execute(statement)
        cursor.fetchall()


# Where there is nothing to roll back


@pytest.mark.usefixtures("complaints")
def test_none_is_sent_for_a_connection_that_was_not_used(engine: Engine, sent: Sent) -> None:
    assert sent(lambda: engine.connect().close()) == 0
    assert sent(lambda: engine.raw_connection().close()) == 0
    assert sent(lambda: Session(engine).close()) == 0


@pytest.mark.usefixtures("complaints")
def test_none_is_sent_after_a_commit_or_a_rollback(engine: Engine, table: str, sent: Sent) -> None:
    def ends(way: str) -> None:
        with Session(engine) as session:
            session.execute(text(f"insert into {table} values (2)"))
            getattr(session, way)()

    assert sent(lambda: ends("rollback")) == 1  # its own
    assert sent(lambda: ends("commit")) == 0
    assert sent(lambda: engine.connect().close()) == 0


def test_without_the_setting_each_is_sent(pymysql: Engine, sent: Sent) -> None:
    guard(pymysql)
    used(pymysql)
    assert sent(lambda: pymysql.raw_connection().close()) == 1


# Where there may be


@pytest.mark.parametrize("statement", ["select 1", "select * from skipped", "set @a = 1", "set transaction read only"])
@pytest.mark.parametrize("way", ["connection", "raw_connection"])
def test_one_is_sent_after_any_statement(engine: Engine, table: str, statement: str, way: str, sent: Sent) -> None:
    def work() -> None:
        if way == "raw_connection":
            with closing(engine.raw_connection()) as proxied, closing(proxied.cursor()) as cursor:
                cursor.execute(statement)
                if cursor.description:
                    cursor.fetchall()
        else:
            with engine.connect() as connection:
                connection.exec_driver_sql(statement)

    assert sent(work) == 1
    assert sent(work) == 1


def test_one_is_sent_after_a_statement_that_failed(engine: Engine, table: str, sent: Sent) -> None:
    """It leaves a transaction with a lock, and the server's answer has no word of it."""

    def work() -> None:
        with engine.connect() as connection, pytest.raises(DBAPIError):
            connection.exec_driver_sql(f"insert into {table} values (1)")

    assert sent(work) == 1


def test_one_is_sent_after_a_commit_that_failed(engine: Engine, sent: Sent) -> None:
    def work() -> None:
        with closing(engine.raw_connection()) as proxied, closing(proxied.cursor()) as cursor:
            cursor.execute("xa begin 'skipped'")
            with pytest.raises(engine.dialect.loaded_dbapi.Error):
                engine.dialect.do_commit(proxied)
            cursor.execute("xa end 'skipped'")
            cursor.execute("xa rollback 'skipped'")

    assert sent(work) == 1


def test_one_is_sent_after_the_drivers_own_ping(engine: Engine, sent: Sent) -> None:
    def work() -> None:
        with closing(engine.raw_connection()) as proxied:
            connection: Any = proxied.dbapi_connection
            assert engine.dialect.do_ping(connection)

    assert sent(work) == 1


def test_one_is_sent_where_a_listener_has_used_the_connection(engine: Engine, sent: Sent) -> None:
    @event.listens_for(engine, "checkin")
    @event.listens_for(engine, "checkout")
    def ask(connection: Any, *ignored: Any) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute("select 1")
            cursor.fetchall()

    assert sent(lambda: engine.raw_connection().close()) == 1


def test_one_is_sent_where_none_was_for_a_while(pymysql: Engine, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall is to see that the connection lives."""
    pool_guard = guard(pymysql, skip_idle_rollback=True)
    used(pymysql)
    assert sent(lambda: pymysql.raw_connection().close()) == 0
    later = time.monotonic() + pool_guard.config.ping_after + 1.0
    monkeypatch.setattr("wsgi_dbguard.rollbacks.monotonic", lambda: later)
    assert sent(lambda: pymysql.raw_connection().close()) == 1


@pytest.mark.parametrize("seconds", [0.8, 1.2])  # of `ping_after`, between the last word and the next checkout
def test_to_take_a_connection_and_give_it_back_without_a_word_is_not_to_use_it(
    pymysql: Engine, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall that has forgotten it meanwhile is noticed at the checkout."""
    pool_guard = guard(pymysql, skip_idle_rollback=True)
    used(pymysql)
    began = time.monotonic()

    def at(share: float) -> None:
        now = began + share * pool_guard.config.ping_after
        for module in ("rollbacks", "checkout", "pool"):
            monkeypatch.setattr(f"wsgi_dbguard.{module}.monotonic", lambda: now)

    at(0.6)
    pymysql.raw_connection().close()
    at(seconds)
    for _ in range(2):
        pymysql.raw_connection().close()
    assert pool_guard.stats()["pings"] == (seconds > 1)


def test_one_is_sent_on_a_connection_that_the_driver_has_opened_anew(pymysql: Engine, sent: Sent) -> None:
    guard(pymysql, skip_idle_rollback=True)
    used(pymysql)

    def work() -> None:
        with closing(pymysql.raw_connection()) as proxied:
            connection: Any = proxied.dbapi_connection
            fd = connection._sock.fileno()
            connection._force_close()
            connection.connect()
            assert connection._sock.fileno() == fd  # the number is the same, the count begins anew
            quiet = link_of(pymysql).quiet
            assert quiet is not None
            quiet.written = quiet.count()  # and happens to be what it was

    assert sent(work) == 1


def test_a_connection_that_the_server_has_closed_is_noticed_at_its_checkin(
    engine: Engine, mariadb: MariaDB, caplog: pytest.LogCaptureFixture
) -> None:
    """As ever: the ROLLBACK fails."""
    caplog.set_level(logging.CRITICAL, "sqlalchemy.pool")
    with closing(engine.raw_connection()):
        mariadb.terminate(*mariadb.backends())
    assert guard(engine).stats()["connections"] == 0


# Where it cannot be known


def test_over_a_unix_socket_each_is_sent_and_that_is_told_once(
    mariadb: MariaDB, make_engine: MakeEngine, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(mariadb.url_through(mariadb.socket, 0), pool_size=2)
    guard(engine, skip_idle_rollback=True)
    with engine.connect():
        used(engine)
    assert sent(lambda: engine.raw_connection().close()) == 1
    [told] = [each for each in caplog.records if each.name == "wsgi_dbguard.rollbacks"]
    assert told.levelno == logging.WARNING
    assert told.getMessage().startswith(f"{guard(engine).name}: skip_idle_rollback has no effect")


def test_on_a_connection_of_several_users_each_is_sent(
    mariadb: MariaDB, make_engine: MakeEngine, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(mariadb.url(), poolclass=StaticPool)
    guard(engine, skip_idle_rollback=True)
    used(engine)
    assert sent(lambda: engine.raw_connection().close()) == 1
    assert [each.name for each in caplog.records] == ["wsgi_dbguard.rollbacks"]


def test_where_a_count_does_not_grow_it_is_not_believed(
    pymysql: Engine, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There are systems that have the call, and answer it with zeros."""
    monkeypatch.setattr("wsgi_dbguard.rollbacks.counter", lambda fd: lambda: 0)
    guard(pymysql, skip_idle_rollback=True)
    used(pymysql)
    assert sent(lambda: pymysql.raw_connection().close()) == 1
    assert [each.name for each in caplog.records] == ["wsgi_dbguard.rollbacks"]


@pytest.mark.usefixtures("complaints")
def test_where_sqlalchemy_sends_none_in_autocommit_there_is_nothing_to_tell(
    mariadb: MariaDB, make_engine: MakeEngine, sent: Sent
) -> None:
    engine = make_engine(mariadb.url(), isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
    guard(engine, skip_idle_rollback=True)
    assert sent(lambda: raw(used(engine), "select 1")) == 0


@pytest.mark.usefixtures("complaints")
def test_postgresql_has_no_need_of_it(postgres: PostgreSQL, make_engine: MakeEngine) -> None:
    engine = make_engine(postgres.url())
    before = engine.dialect.do_rollback  # where all engines are watched, it is wrapped already
    guard(engine, skip_idle_rollback=True)
    used(engine)
    assert engine.dialect.do_rollback == before


@pytest.mark.usefixtures("every_engine", "complaints")
def test_a_guard_that_is_told_otherwise_later_skips_no_more(
    mariadb: MariaDB, make_engine: MakeEngine, sent: Sent
) -> None:
    guard_all(GuardConfig(skip_idle_rollback=True))
    engine = used(make_engine(mariadb.url()))
    assert sent(lambda: engine.raw_connection().close()) == 0
    guard(engine, skip_idle_rollback=False)
    assert sent(lambda: engine.raw_connection().close()) == 1


# With all the rest


@pytest.mark.parametrize("name", [driver.name for driver in DRIVERS if driver.database == "mariadb"])
def test_encrypted_it_is_the_same(name: str, server_of: Callable[..., Any], make_engine: MakeEngine) -> None:
    server: MariaDB = server_of(driver_named(name), tls=True)
    engine = make_engine(server.url(name), pool_size=1, max_overflow=0)
    guard(engine, skip_idle_rollback=True)
    used(engine)

    def rolled_back() -> int:
        return int(server.query("show global status like 'Com_rollback'")[0][1])

    before = rolled_back()
    engine.raw_connection().close()
    assert rolled_back() == before
    raw(engine, "select 1")
    assert rolled_back() == before + 1


def test_by_url_alone(mariadb: MariaDB, make_engine: MakeEngine, sent: Sent) -> None:
    engine = used(make_engine(mariadb.url(plugin="dbguard", dbguard_skip_idle_rollback="on")))
    assert sent(lambda: engine.raw_connection().close()) == 0


@pytest.mark.parametrize("first", ["guard", "request"])
def test_whoever_came_first_a_rollback_is_seen_by_the_request(pymysql: Engine, first: str) -> None:
    """Sent or not: it ends what the request thinks is on its way."""
    if first == "request":
        transactions.watch(pymysql)
    guard(pymysql, skip_idle_rollback=True)
    transactions.watch(pymysql)
    used(pymysql)
    request = Request(create_environ("/", method="POST"))
    token = current.set(request)
    try:
        connection = pymysql.connect()
        connection.execute(text("select 1"))
        connection.commit()
        request.committing = weakref.ref(connection.connection)
        connection.close()
        assert request.committing is None
    finally:
        current.reset(token)
