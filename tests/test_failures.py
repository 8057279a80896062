"""Every code of the table, raised by a real server through every driver, means what the table says."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Iterator
from contextlib import closing
from ssl import SSLEOFError
from types import ModuleType

import psycopg2
import pymysql
import pytest
from sqlalchemy import Engine, create_engine, exc

from wsgi_dbguard.failures import CODES, Failure, classify, code_of, may_pass, network_failed, refused
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

SQLSTATES = [code for code in CODES if isinstance(code, str)]
NUMBERS = [code for code in CODES if isinstance(code, int)]
CLIENT_NUMBERS = [number for number in NUMBERS if 2000 <= number < 3000]  # libmariadb takes none of these from a server
READ_ONLY = "The MariaDB server is running with the --read-only option so it cannot execute this statement"
OTHER_OPTION = "The MariaDB server is running with the --secure-file-priv option so it cannot execute this statement"


@pytest.fixture
def mysql_connector() -> ModuleType:
    if missing := driver_named("mysql-connector").missing():
        pytest.skip(missing)
    return importlib.import_module("mysql.connector")


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where somebody accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def installed(database: str) -> list[object]:
    return [
        pytest.param(driver, id=driver.name, marks=pytest.mark.skipif(bool(reason), reason=str(reason)))
        for driver in DRIVERS
        if driver.database == database
        for reason in [driver.missing()]
    ]


def raised(engine: Engine, statement: str) -> Exception:
    """What the driver, without SQLAlchemy, raises for a statement."""
    connection = engine.raw_connection()
    try:
        with closing(connection.cursor()) as cursor:
            with pytest.raises(Exception) as error:  # noqa: PT011
                cursor.execute(statement)
            return error.value
    finally:
        connection.invalidate()
        engine.dispose()


def signalled(server: MariaDB, driver: Driver, number: int, message: str) -> Exception:
    statement = f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{message}'"
    return raised(create_engine(driver.url(server.url())), statement)


@pytest.mark.parametrize("driver", installed("postgresql"))
def test_every_sqlstate_is_told_by_driver(postgres: PostgreSQL, driver: Driver) -> None:
    engine = create_engine(driver.url(postgres.url()))
    for code in SQLSTATES:
        error = raised(engine, f"DO $$ BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{code}'; END $$")
        assert code_of(error) == code
        assert classify(error) is CODES[code]


@pytest.mark.parametrize("driver", installed("mariadb"))
def test_every_number_is_told_by_driver_though_the_sqlstate_is_hy000(mariadb: MariaDB, driver: Driver) -> None:
    for number in set(NUMBERS) - set(CLIENT_NUMBERS):
        error = signalled(mariadb, driver, number, "told")
        assert code_of(error) == number
        assert classify(error) is CODES[number]


@pytest.mark.parametrize("number", CLIENT_NUMBERS)
def test_number_of_the_clients_own(number: int) -> None:
    class NumberedError(Exception):  # as mariadb's is
        errno = number

    assert classify(pymysql.err.OperationalError(number, "told")) is CODES[number]
    assert classify(NumberedError("told")) is CODES[number]


@pytest.mark.parametrize("driver", installed("mariadb"))
def test_option_that_prevents_statement_is_read_only_by_that_option_alone(mariadb: MariaDB, driver: Driver) -> None:
    assert classify(signalled(mariadb, driver, 1290, READ_ONLY)) is Failure.READ_ONLY
    assert classify(signalled(mariadb, driver, 1290, OTHER_OPTION)) is Failure.OTHER


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("57P01", Failure.DISCONNECT),
        ("53300", Failure.UNAVAILABLE),
        ("25006", Failure.READ_ONLY),
        ("40001", Failure.SERIALIZATION),
        ("40P01", Failure.DEADLOCK),
        ("55P03", Failure.LOCK_TIMEOUT),
        ("08007", Failure.IN_DOUBT),
        (2006, Failure.DISCONNECT),
        (1040, Failure.UNAVAILABLE),
        (1792, Failure.READ_ONLY),
        (1836, Failure.READ_ONLY),
        (1020, Failure.SERIALIZATION),
        (1213, Failure.DEADLOCK),
        (1205, Failure.LOCK_TIMEOUT),
    ],
)
def test_well_known_code(code: str | int, failure: Failure) -> None:
    assert CODES[code] is failure


def test_integrity_error_is_the_statements_own() -> None:
    assert classify(pymysql.err.IntegrityError(1062, "Duplicate entry")) is Failure.OTHER


def test_closed_connection_without_a_number_is_what_sqlalchemy_takes_it_for() -> None:
    closed = pymysql.err.InterfaceError(0, "")
    assert code_of(closed) is None
    assert classify(exc.InterfaceError("select 1", None, closed, connection_invalidated=True)) is Failure.DISCONNECT
    assert classify(exc.InterfaceError("select 1", None, closed)) is Failure.OTHER


def test_timeouts_of_mysql_connectors_own_are_no_answer_of_the_servers_though_they_have_its_number(
    mysql_connector: ModuleType, silent: int
) -> None:
    errors = mysql_connector.errors
    with pytest.raises(errors.ConnectionTimeoutError) as caught:
        mysql_connector.connect(host="127.0.0.1", port=silent, user="app", connect_timeout=1)
    assert caught.value.errno == 3024
    assert classify(caught.value, connecting=True) is Failure.UNAVAILABLE
    lost = errors.ReadTimeoutError(errno=3024)  # in a COMMIT, for one
    assert code_of(lost) is None
    assert classify(lost) is Failure.DISCONNECT
    assert not refused(lost)
    assert classify(errors.DatabaseError("max_execution_time", errno=3024)) is Failure.OTHER


def test_connection_that_mysql_connector_has_closed_is_gone(mysql_connector: ModuleType) -> None:
    with pytest.raises(mysql_connector.errors.OperationalError) as caught:
        mysql_connector.MySQLConnection().cursor()
    assert classify(caught.value) is Failure.DISCONNECT


def test_lost_connection_while_connecting_means_that_none_is_to_be_had() -> None:
    lost = pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")
    assert classify(lost) is Failure.DISCONNECT
    assert classify(lost, connecting=True) is Failure.UNAVAILABLE
    assert classify(ConnectionRefusedError(111, "Connection refused"), connecting=True) is Failure.UNAVAILABLE


@pytest.mark.parametrize(
    "error", [TimeoutError(110, "x"), ConnectionResetError(104, "x"), OSError(113, "x"), SSLEOFError()]
)
def test_sockets_own_error_which_pg8000_lets_through_is_a_disconnect(error: OSError) -> None:
    assert code_of(error) is None
    assert classify(error) is Failure.DISCONNECT
    assert not refused(error)


@pytest.mark.parametrize("interrupt", [SystemExit(1), type("Timeout", (BaseException,), {})(5), KeyError(1205)])
def test_an_interrupt_with_a_number_is_no_answer_of_the_servers(interrupt: BaseException) -> None:
    """gevent's Timeout has its seconds where MySQL's drivers have their number."""
    assert not refused(interrupt)


def test_deadline_of_the_application_is_no_failure_of_the_network() -> None:
    assert not network_failed(TimeoutError("too slow"))


def test_missing_file_is_no_disconnect() -> None:
    assert classify(FileNotFoundError(2, "No such file or directory")) is Failure.OTHER


def test_programs_mistake_while_connecting_is_no_outage() -> None:
    assert classify(pymysql.err.ProgrammingError("unknown argument"), connecting=True) is Failure.OTHER


@pytest.mark.parametrize(
    ("attempts", "lasts"),
    [
        (["SSL error: certificate verify failed"], True),
        (["SSL error: certificate verify failed", "FATAL:  the database system is starting up"], False),
        (["FATAL:  sorry, too many clients", 'FATAL:  no pg_hba.conf entry for host "a", no encryption'], False),
        (['FATAL:  role "app" does not exist', 'FATAL:  no pg_hba.conf entry for host "a", no encryption'], True),
        (['FATAL:  too many connections for role "app"'], False),
        (["SSL SYSCALL error: EOF detected"], False),
    ],
    ids=str,
)
def test_what_libpq_met_lasts_only_if_it_is_so_at_each_address_and_with_and_without_tls(
    attempts: list[str], lasts: bool
) -> None:
    told = "\n".join(f'connection to server at "certificate file" (::1), port 1 failed: {each}' for each in attempts)
    assert may_pass(psycopg2.OperationalError(told)) is not lasts


def test_exhausted_pool_is_unavailable() -> None:
    assert classify(exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached")) is Failure.UNAVAILABLE


@pytest.mark.parametrize("code", ["XX9DB", 19001])
def test_code_of_the_users_own(monkeypatch: pytest.MonkeyPatch, code: str | int) -> None:
    class ProxyError(Exception):
        sqlstate = code if isinstance(code, str) else None

    error = ProxyError(code, "the proxy is out of backends")
    assert classify(error) is Failure.OTHER
    monkeypatch.setitem(CODES, code, Failure.UNAVAILABLE)
    assert classify(error) is Failure.UNAVAILABLE
    assert classify(exc.DBAPIError("select 1", None, error)) is Failure.UNAVAILABLE
