"""What a request leaves on its connection, with every driver: modes of the driver's own, and in MariaDB settings,
locks and tables. The next request does not meet it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard, flags, guard
from wsgi_dbguard.lab.drivers import driver_named
from wsgi_dbguard.lab.mariadb import MariaDB

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Setter = Callable[[Any], object]


def sets(name: str, value: Any) -> Setter:
    return lambda connection: setattr(connection, name, value)


def calls(name: str, *arguments: Any) -> Setter:
    return lambda connection: getattr(connection, name)(*arguments)


# By driver: what an application may do to the driver's connection, and where the server shows it.
MODES: list[tuple[str, Setter, str]] = [
    ("psycopg2", sets("autocommit", True), ""),
    ("psycopg2", sets("isolation_level", "SERIALIZABLE"), "show transaction_isolation"),
    ("psycopg2", sets("readonly", True), "show transaction_read_only"),
    ("psycopg2", sets("deferrable", True), "show transaction_deferrable"),
    ("psycopg2", calls("set_session", "REPEATABLE READ", True), "show transaction_read_only"),
    ("psycopg", sets("autocommit", True), ""),
    ("psycopg", sets("isolation_level", 4), "show transaction_isolation"),
    ("psycopg", sets("read_only", True), "show transaction_read_only"),
    ("psycopg", sets("deferrable", True), "show transaction_deferrable"),
    ("pg8000", sets("autocommit", True), ""),
    ("pymysql", calls("autocommit", True), "select @@autocommit"),
    ("mysqlclient", calls("autocommit", True), "select @@autocommit"),
    ("mariadb", sets("autocommit", True), "select @@autocommit"),
]
MARIADB = ["pymysql", "mysqlclient", "mariadb"]
LEFTOVERS: list[tuple[list[str], str]] = [
    (["set session sql_mode = 'ANSI'"], "select @@sql_mode"),
    (["set long_query_time = 7.5, @@lock_wait_timeout = 7"], "select concat(@@long_query_time, @@lock_wait_timeout)"),
    (["set @tenant = 7"], "select @tenant"),
    (["set names utf8mb4 collate utf8mb4_bin"], "select concat(@@character_set_client, @@collation_connection)"),
    (["use information_schema"], "select database()"),
    (["set autocommit = 1"], "select @@autocommit"),
    (["set session transaction isolation level read uncommitted"], "select @@tx_isolation"),
    (["set session transaction read only"], "select @@tx_read_only"),
    (["/*!40101 SET sql_mode = 'ANSI' */"], "select @@sql_mode"),
    (["set @colour = '#fff', session time_zone = '+05:00'"], "select @@time_zone"),
    (["set @a = 'x; --', session time_zone = '+05:00'"], "select @@time_zone"),
    (["set @a = 'it\\'s', session time_zone = '+05:00'"], "select @@time_zone"),
    (["select 'secret' from (select 1) x where '#' = '#' into/**/@v"], "select @v"),
    (["get diagnostics @p = row_count"], "select @p"),
    ([f"/* {'x' * 5000} */ set @long = 1"], "select @long"),
    ([f"select 'secret' from (select 1 a) x where a in ({'1,' * 3000}1) into @w"], "select @w"),
]


@pytest.fixture
def connect(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> Callable[[str], Engine]:
    """An engine with one connection, which has been used."""

    def connect(name: str) -> Engine:
        driver = driver_named(name)
        if reason := driver.missing():
            pytest.skip(reason)
        server = request.getfixturevalue("postgres" if driver.database == "postgresql" else "mariadb")
        engine = make_engine(driver.url(server.url()), pool_size=1, max_overflow=0)
        with engine.connect():
            return engine

    return connect


def works(work: Callable[[], object]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        work()
        start_response("200 OK", [])
        return [b""]

    return app


def serve(app: WSGIApplication) -> None:
    list(app(create_environ("/"), lambda *ignored: lambda data: None))


def look(engine: Engine, question: str) -> tuple[object, Any, int]:
    """The driver's modes, the server's answer, and which connection it is."""
    with engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        return flags.reader(raw)(raw), connection.exec_driver_sql(question).scalar() if question else None, id(raw)


@pytest.mark.parametrize("way", ["connection", "raw_connection"])
@pytest.mark.parametrize(("name", "change", "question"), MODES, ids=[f"{each[0]}-{i}" for i, each in enumerate(MODES)])
def test_a_mode_of_the_drivers_is_as_it_was_for_the_next_request(
    connect: Callable[[str], Engine], name: str, change: Setter, question: str, way: str
) -> None:
    engine = connect(name)
    clean, shown, _ = look(engine, question)

    def leave() -> None:
        if way == "raw_connection":
            proxy = engine.raw_connection()
            change(proxy.dbapi_connection)
            proxy.close()
        else:
            with engine.connect() as connection:
                change(connection.connection.dbapi_connection)

    leave()
    left, told, _ = look(engine, question)
    assert left != clean
    assert told != shown or not question  # and so it stays
    engine.dispose()
    seen: list[tuple[object, Any, int]] = []
    apps = works(lambda: look(engine, question)), works(leave), works(lambda: seen.append(look(engine, question)))
    for app in apps * 2:
        serve(DBGuard(app, engine))
    (flags_1, answer_1, first), (flags_2, answer_2, second) = seen
    assert flags_1 == flags_2 == clean
    assert answer_1 == answer_2 == shown
    assert first == second
    assert guard(engine).stats()["replaced"] == {}


@pytest.mark.parametrize("name", ["psycopg2", "psycopg", "pg8000", *MARIADB])
def test_modes_that_every_connection_is_to_have_stay(connect: Callable[[str], Engine], name: str) -> None:
    """Of the user's listener, and of SQLAlchemy's execution options, which it takes back by itself."""
    engine = connect(name)
    engine.dispose()

    @event.listens_for(engine, "connect")
    def configure(connection: Any, entry: Any) -> None:
        if callable(connection.autocommit):
            connection.autocommit(True)
        else:
            connection.autocommit = True

    seen: list[tuple[object, Any, int]] = []
    for _ in range(3):
        serve(DBGuard(works(lambda: seen.append(look(engine, ""))), engine))
        assert seen[0] == seen[-1]
    assert guard(engine).stats()["replaced"] == {}


@pytest.mark.parametrize("name", ["psycopg2", "psycopg", "pg8000", *MARIADB])
def test_execution_options_cost_nothing(connect: Callable[[str], Engine], name: str) -> None:
    engine = connect(name)
    engine.dispose()

    def work() -> None:
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("select 1")

    seen: list[tuple[object, Any, int]] = []
    for _ in range(3):
        serve(DBGuard(works(lambda: seen.append(look(engine, ""))), engine))
        serve(DBGuard(works(work), engine))
        assert seen[0] == seen[-1]
    assert guard(engine).stats()["replaced"] == {}


@pytest.mark.parametrize("name", MARIADB)
@pytest.mark.parametrize(("statements", "question"), LEFTOVERS, ids=[each[0][0][:80] for each in LEFTOVERS])
def test_settings_are_as_they_were(
    connect: Callable[[str], Engine], name: str, statements: list[str], question: str
) -> None:
    engine = connect(name)

    def leave() -> None:
        with engine.connect() as connection:
            for each in statements:
                connection.exec_driver_sql(each)

    clean = look(engine, question)[1]
    leave()
    assert look(engine, question)[1] != clean
    engine.dispose()
    for _ in range(3):
        serve(DBGuard(works(leave), engine))
        assert look(engine, question)[1] == clean
    stats = guard(engine).stats()
    assert (stats["replaced"], stats["restored"]) == ({"changed": 1}, 2)


@pytest.mark.parametrize("name", MARIADB)
def test_a_connection_that_the_application_closed_behind_the_pool_is_replaced(
    connect: Callable[[str], Engine], name: str
) -> None:
    """Some drivers raise when they are asked for a mode of such a one."""
    engine = connect(name)

    def close() -> None:
        with engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
        raw.close()

    seen: list[tuple[object, Any, int]] = []
    for _ in range(2):
        serve(DBGuard(works(close), engine))
        serve(DBGuard(works(lambda: seen.append(look(engine, "select 1"))), engine))
    assert [each[1] for each in seen] == [1, 1]


# What is left, whether it is there, and what puts it right.
OBJECTS = [
    ("create temporary table mine (x int)", "select * from mine", "drop temporary table mine"),
    ("prepare mine from 'select 1'", "execute mine", "deallocate prepare mine"),
]


@pytest.mark.parametrize("name", MARIADB)
@pytest.mark.parametrize(("statement", "use", "undo"), OBJECTS, ids=[each[0] for each in OBJECTS])
def test_what_has_no_value_costs_the_connection_unless_the_request_undid_it(
    connect: Callable[[str], Engine], name: str, statement: str, use: str, undo: str
) -> None:
    engine = connect(name)

    def leave(*statements: str) -> None:
        with engine.connect() as connection:
            for each in statements:
                connection.exec_driver_sql(each)

    leave(statement)
    look(engine, use)
    engine.dispose()
    for _ in range(2):
        serve(DBGuard(works(lambda: leave(statement)), engine))
        with pytest.raises(Exception, match="mine"):
            look(engine, use)
    assert guard(engine).stats()["replaced"] == {"changed": 2}
    serve(DBGuard(works(lambda: leave(statement, undo)), engine))
    look(engine, "select 1")
    assert guard(engine).stats()["replaced"] == {"changed": 2}


@pytest.mark.parametrize("name", MARIADB)
@pytest.mark.parametrize(
    ("lock", "unlock"),
    [
        ("select get_lock('left', 0)", "select release_lock('left')"),
        ("select get_lock('left', 0)", "select release_all_locks()"),
        ("lock tables some read", "unlock tables"),
    ],
)
def test_locks_do_not_outlive_their_request(
    connect: Callable[[str], Engine], mariadb: MariaDB, name: str, lock: str, unlock: str
) -> None:
    engine = connect(name)
    mariadb.query("create table if not exists some (x int)")
    number = "select connection_id()"

    def leave(*statements: str) -> None:
        with engine.connect() as connection:
            for each in statements:
                connection.exec_driver_sql(each)

    first = look(engine, number)[1]
    serve(DBGuard(works(lambda: leave(lock, unlock)), engine))
    assert look(engine, number)[1] == first
    serve(DBGuard(works(lambda: leave(lock)), engine))
    assert look(engine, number)[1] != first
    serve(DBGuard(works(lambda: leave(lock, lock, unlock)), engine))
    assert not look(engine, "select is_used_lock('left') = connection_id()")[1]
