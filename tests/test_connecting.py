"""The opening of connections is bounded."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from wsgi_dbguard import guard, watchdog
from wsgi_dbguard.connecting import bound, install
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.lab.wire import TIMEOUT
from wsgi_dbguard.link import Link
from wsgi_dbguard.variables import Variables

Server = PostgreSQL | MariaDB
Make = Callable[..., Engine]
Saying = Callable[[bytes], tuple[int, threading.Event]]
LONG = {"pg8000": "SELECT pg_sleep(1)", "pymysql": "SELECT SLEEP(1)"}


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where somebody accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def saying() -> Iterator[Saying]:
    """A server that says these words and nothing else: its port, and what is set when its client has closed."""
    with ExitStack() as stack:

        def start(words: bytes) -> tuple[int, threading.Event]:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.settimeout(TIMEOUT)
            ended = threading.Event()

            def serve() -> None:
                with listener.accept()[0] as client:
                    client.settimeout(TIMEOUT)
                    client.sendall(words)
                    with suppress(ConnectionResetError):
                        while client.recv(4096):
                            pass
                ended.set()

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return listener.getsockname()[1], ended

        yield start


def url_of(server: Server, driver: Driver) -> URL:
    if driver.name == "pg8000":  # which knows none of libpq's words, and takes TLS where it is to be had
        return driver.url(server.url()).set(query={})
    return make_url(server.url(driver.name))


def limited(engine: Engine, seconds: float) -> Engine:
    """With a limit shorter than a setting of the guard's may be."""
    install(engine.dialect, lambda: seconds)
    return engine


def timeouts(engine: Engine) -> dict[str, Any]:
    """All that a new connection knows of timeouts."""
    connection: Any = engine.raw_connection()
    try:
        driver: Any = connection.dbapi_connection
        found = {name: value for name, value in vars(driver).items() if "timeout" in name and name != "connect_timeout"}
        sock = driver._usock if hasattr(driver, "_usock") else driver._sock
        return {**found, "socket": sock.gettimeout(), "tls": isinstance(sock, ssl.SSLSocket)}
    finally:
        connection.close()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "mysqldb", "mariadbconnector", "mysqlconnector", "pymysql"])
def test_the_driver_is_told(driver: str) -> None:
    keywords: dict[str, Any] = {"host": "db"}
    bound(driver, (), keywords, 9.2)
    assert keywords == {"host": "db", "connect_timeout": 10}


@pytest.mark.parametrize(
    ("driver", "args", "keywords"),
    [
        ("psycopg2", (), {"connect_timeout": 3}),
        ("psycopg2", (), {"dsn": "host=db connect_timeout=3"}),
        ("psycopg", ("host=db connect_timeout=3",), {}),
        ("mysqlconnector", (), {"connection_timeout": 3}),
        ("pg8000", (), {"host": "db"}),
        ("unknown", (), {"host": "db"}),
    ],
)
def test_what_the_application_says_stays(driver: str, args: tuple[str, ...], keywords: dict[str, Any]) -> None:
    before = dict(keywords)
    bound(driver, args, keywords, 10.0)
    assert keywords == before


def test_so_does_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    assert os.environ["PGCONNECT_TIMEOUT"] == "3"
    keywords: dict[str, Any] = {}
    bound("psycopg2", (), keywords, 10.0)
    assert keywords == {}


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_a_server_that_says_nothing_is_given_up(driver: Driver, silent: int) -> None:
    if missing := driver.missing():
        pytest.skip(missing)
    engine = create_engine(f"{driver.dialect}://app:app@127.0.0.1:{silent}/app")
    guarded = guard(engine, connect_timeout=2.0)
    begun = time.monotonic()
    with pytest.raises(DBAPIError):
        engine.connect()
    assert 1.5 < time.monotonic() - begun < TIMEOUT
    assert guarded.stats()["away"]
    engine.dispose()


@pytest.mark.parametrize("words", [b"", b"S", b"N"], ids=["silence", "TLS", "no TLS"])
def test_pg8000_gives_up_wherever_the_server_stops(words: bytes, saying: Saying, make_engine: Make) -> None:
    assert_given_up(driver_named("pg8000"), words, saying, make_engine)


@pytest.mark.parametrize("timeout", [{}, {"timeout": 50.0}], ids=str)
def test_a_handshake_that_is_cut_is_an_error_of_the_drivers(
    timeout: dict[str, Any], postgres: PostgreSQL, make_engine: Make
) -> None:
    driver = driver_named("pg8000")
    if missing := driver.missing():
        pytest.skip(missing)
    with FaultProxy(postgres.host, postgres.port) as proxy:
        url = driver.url(postgres.url_through(proxy.host, proxy.port))
        engine = make_engine(url, connect_args=timeout)
        install(engine.dialect, lambda: 10.0)
        event.listen(engine, "do_connect", lambda *_: proxy.drop_after(4))
        with pytest.raises(OperationalError, match="reset"):
            engine.connect()


@pytest.mark.slow
def test_pymysql_gives_up_wherever_the_server_stops(
    server_of: Callable[..., Server], saying: Saying, make_engine: Make
) -> None:
    driver = driver_named("pymysql")
    server = server_of(driver)
    with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as client:
        greeting = client.recv(4096)
    for words in (b"", greeting[:20], greeting):
        assert_given_up(driver, words, saying, make_engine)


def assert_given_up(driver: Driver, words: bytes, saying: Saying, make_engine: Make) -> None:
    if missing := driver.missing():
        pytest.skip(missing)
    port, ended = saying(words)
    engine = limited(make_engine(f"{driver.dialect}://app@127.0.0.1:{port}/app"), 0.5)
    with pytest.raises(DBAPIError) as caught:
        engine.connect()
    assert ended.wait(TIMEOUT), "the socket is open for as long as the error lives"
    assert caught.value.orig is not None


@pytest.mark.parametrize(
    ("name", "tls"),
    [
        ("pg8000", False),
        pytest.param("pg8000", True, marks=pytest.mark.slow),
        pytest.param("pymysql", False, marks=pytest.mark.slow),
        pytest.param("pymysql", True, marks=pytest.mark.slow),
    ],
)
def test_the_limit_is_taken_off_when_the_connection_is_there(
    name: str, tls: bool, server_of: Callable[..., Server], make_engine: Make
) -> None:
    driver = driver_named(name)
    url = url_of(server_of(driver, tls=tls), driver)
    plain, short = make_engine(url), limited(make_engine(url), 0.5)
    assert timeouts(short) == timeouts(plain)
    assert timeouts(short)["tls"] == tls
    with short.connect() as connection:
        connection.execute(text(LONG[name]))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("pg8000", {"timeout": 50.0}),
        pytest.param("pymysql", {"read_timeout": 50}, marks=pytest.mark.slow),
        pytest.param("pymysql", {"write_timeout": 50}, marks=pytest.mark.slow),
        pytest.param("pymysql", {"read_timeout": 50, "write_timeout": 40}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_timeouts_of_the_applications_stay(
    name: str, given: dict[str, Any], server_of: Callable[..., Server], make_engine: Make
) -> None:
    driver = driver_named(name)
    url = url_of(server_of(driver), driver)
    with_ours = timeouts(limited(make_engine(url, connect_args=given), 20.0))
    assert with_ours == timeouts(make_engine(url, connect_args=given))
    assert set(given.values()) <= set(with_ours.values())


def test_a_listener_that_connects_by_itself_is_given_no_limit_that_nobody_takes_off(silent: int) -> None:
    engine = create_engine(f"mysql+pymysql://app@127.0.0.1:{silent}/app")
    guard(engine)
    seen: list[dict[str, Any]] = []

    def listener(dialect: Any, entry: Any, args: Any, keywords: dict[str, Any]) -> Any:
        seen.append(keywords)
        raise ConnectionRefusedError("refused")

    event.listen(engine, "do_connect", listener)
    with pytest.raises(ConnectionRefusedError):
        engine.connect()
    assert {"read_timeout", "write_timeout"}.isdisjoint(seen[0])


def test_a_driver_that_keeps_its_timeout_elsewhere_goes_without_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    told: list[dict[str, Any]] = []
    closed: list[int] = []

    def connect(**keywords: Any) -> Any:
        told.append(keywords)
        return SimpleNamespace(close=lambda: closed.append(len(told)))

    dialect: Any = SimpleNamespace(driver="pg8000", connect=connect)
    install(dialect, lambda: 5.0)
    with caplog.at_level(logging.WARNING, "wsgi_dbguard"):
        dialect.connect(host="db")
        dialect.connect(host="db")
    assert told == [{"host": "db", "timeout": 5.0}, {"host": "db"}, {"host": "db"}]
    assert closed == [1]
    assert len(caplog.records) == 1


def test_none_is_no_limit() -> None:
    told: list[dict[str, Any]] = []
    dialect: Any = SimpleNamespace(driver="pg8000", connect=lambda **keywords: told.append(keywords))
    install(dialect, lambda: None)
    dialect.connect(host="db")
    assert told == [{"host": "db"}]


def test_a_listener_of_the_users_has_the_last_word() -> None:
    engine = create_engine("postgresql+psycopg2://app@127.0.0.1:1/app")
    guard(engine)
    seen: list[Any] = []

    def listener(dialect: Any, entry: Any, args: Any, keywords: dict[str, Any]) -> None:
        seen.append(keywords["connect_timeout"])
        keywords["connect_timeout"] = 5

    event.listen(engine, "do_connect", listener)
    with pytest.raises(OperationalError):
        engine.connect()
    assert seen == [10]


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_sqlalchemys_own_questions_on_the_first_connection_are_bounded_too(
    driver: Driver, server_of: Callable[..., Server], make_engine: Make
) -> None:
    server = server_of(driver)
    engine = make_engine(server.url(driver.name))
    guard(engine, connect_timeout=2.0)
    # After the handshake, before SQLAlchemy asks for the server's version.
    event.listen(engine, "connect", lambda connection, entry: server.pause(), insert=True, once=True)
    try:
        with ThreadPoolExecutor(1) as thread:
            try:
                failure = thread.submit(engine.connect).exception(TIMEOUT)
            finally:
                server.resume()
        assert isinstance(failure, DBAPIError)
    finally:
        server.resume()
    with engine.connect() as connection:
        assert connection.scalar(text("select 1")) == 1


@pytest.mark.slow
def test_first_connections_wait_for_each_other_no_longer_than_one_may_take(
    server_of: Callable[..., Server], make_engine: Make
) -> None:
    """SQLAlchemy asks its questions under a lock until they were answered once."""
    server, together, limit = server_of(driver_named("psycopg2")), 5, 3.0
    opened = threading.Barrier(together, action=server.pause)
    engine = make_engine(server.url("psycopg2"))

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, entry: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        connection = dialect.connect(*arguments, **keywords)
        opened.wait(TIMEOUT)
        return connection

    guard(engine, connect_timeout=limit)
    try:
        with ThreadPoolExecutor(together) as threads:
            begun = time.monotonic()
            failures = [threads.submit(engine.connect) for _ in range(together)]
            assert all(isinstance(each.exception(TIMEOUT), DBAPIError) for each in failures)
            took = time.monotonic() - begun
    finally:
        server.resume()
    assert took < 3 * limit


@pytest.mark.slow
def test_what_the_guard_asks_a_new_connection_is_bounded(server_of: Callable[..., Server], make_engine: Make) -> None:
    server = server_of(driver_named("psycopg2"))
    engine = make_engine(server.url("psycopg2"))
    pool_guard = guard(engine, ping_timeout=0.5)
    pool_guard._variables = Variables()
    pool_guard._variables.names = frozenset({"search_path"})
    event.listen(engine, "connect", lambda connection, entry: server.pause(), once=True)
    with ThreadPoolExecutor(1) as thread:
        try:
            connection = thread.submit(engine.raw_connection).result(TIMEOUT)
        finally:
            server.resume()
    connection.invalidate()


def test_what_is_opened_in_time_has_no_limit_any_more(postgres: PostgreSQL, make_engine: Make) -> None:
    engine = make_engine(postgres.url())
    guard(engine)
    with engine.connect():
        assert not any(isinstance(each.action.__self__, Link) for each in _pending())


def test_nor_has_one_of_a_pool_that_two_engines_share(postgres: PostgreSQL, make_engine: Make) -> None:
    engine = make_engine(postgres.url())
    other = create_engine(postgres.url(), pool=engine.pool)
    guard(engine)
    guard(other)
    with other.connect():
        assert not any(isinstance(each.action.__self__, Link) for each in _pending())


def _pending() -> list[Any]:
    return [each for each in watchdog._watchdog.pending.values() if hasattr(each.action, "__self__")]
