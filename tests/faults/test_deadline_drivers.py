"""Every driver's way to stop a query on the server: directly, through what stands in between, and past the pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, text
from werkzeug.test import Client, TestResponse

from wsgi_dbguard import DBGuard, cancel, guard, registry
from wsgi_dbguard.lab.drivers import DRIVERS, Driver, driver_named
from wsgi_dbguard.lab.haproxy import HAProxy
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.pgbouncer import PgBouncer
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.link import KEY, Link

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PATIENCE = 60.0  # seconds, however busy the machine
SLEEP = {"postgresql": "SELECT pg_sleep(:seconds)", "mariadb": "SELECT SLEEP(:seconds)"}
RUNNING = {
    "postgresql": "select count(*) from pg_stat_activity where state = 'active' and query like 'SELECT pg_sleep%%'",
    "mariadb": "select count(*) from information_schema.processlist where info like 'SELECT SLEEP%%'",
}
QUICK = ["psycopg2", "pymysql"]
Server = PostgreSQL | MariaDB


@pytest.fixture
def engine_at() -> Iterator[Callable[..., Engine]]:
    """One connection, to a URL."""
    made: list[Engine] = []

    def engine(url: URL | str, **options: Any) -> Engine:
        made.append(create_engine(url, pool_size=1, max_overflow=0, **options))
        return made[-1]

    yield engine
    for each in made:
        each.dispose()


def application(engine: Engine, driver: Driver) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        with engine.connect() as connection:
            connection.execute(text(SLEEP[driver.database]), {"seconds": 120 if path == "/slow" else 0})
            answer = connection.scalar(text("SELECT CAST(:path AS CHAR(20))"), {"path": path})
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(answer).strip().encode()]

    return application


def get(app: WSGIApplication, path: str) -> TestResponse:
    return Client(app).get(path, buffered=True)


def overruns(engine: Engine, driver: Driver, server: Server, *, cut: bool = False) -> dict[str, int]:
    """A request runs into its deadline; what the pool replaced in the end. `cut`: cancelling it does not help."""
    app, ping_timeout = application(engine, driver), 1.0 if cut else PATIENCE
    guarded = DBGuard(app, engine, deadline=0.5, ping_timeout=ping_timeout)
    patient = DBGuard(app, engine, deadline=PATIENCE, ping_timeout=ping_timeout)
    assert get(patient, "/before").text == "/before"
    begun = time.monotonic()
    response = get(guarded, "/slow")
    seconds = time.monotonic() - begun
    assert response.status_code == 503, response.text
    assert (1.5 if cut else 0.5) <= seconds < PATIENCE
    if not cut:
        assert not ended_later(server, driver)
    assert get(patient, "/after").text == "/after"
    [stats] = guarded.stats()["pools"].values()
    replaced: dict[str, int] = stats["replaced"]
    return replaced


def ended_later(server: Server, driver: Driver) -> int:
    wait_until(lambda: server.query(RUNNING[driver.database]) == [(0,)], timeout=PATIENCE, what="the end of the query")
    return 0


@pytest.mark.parametrize(
    "driver", [pytest.param(each, marks=() if each.name in QUICK else pytest.mark.slow) for each in DRIVERS], ids=str
)
def test_the_query_is_cancelled_on_the_server(
    driver: Driver, server_of: Callable[..., Server], engine_at: Callable[..., Engine]
) -> None:
    server = server_of(driver)
    assert overruns(engine_at(driver.url(server.url())), driver, server) == {"deadline": 1}


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_it_is_cancelled_through_tls(
    driver: Driver, server_of: Callable[..., Server], engine_at: Callable[..., Engine]
) -> None:
    if driver.name == "pg8000":
        pytest.skip("it takes a context instead of libpq's words; its cancel goes in the clear in any case")
    server = server_of(driver, tls=True)
    assert overruns(engine_at(server.url(driver.name)), driver, server) == {"deadline": 1}


@pytest.mark.slow
@pytest.mark.parametrize("driver", [each for each in DRIVERS if each.database == "postgresql"], ids=str)
def test_pgbouncer_passes_the_cancel_on(
    driver: Driver, server_of: Callable[..., Server], engine_at: Callable[..., Engine]
) -> None:
    server = server_of(driver)
    assert isinstance(server, PostgreSQL)
    with PgBouncer(server, mode="session") as pooler:
        engine = engine_at(driver.url(pooler.url()))
        assert overruns(engine, driver, server) == {"deadline": 1}
        engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_haproxy_lets_it_through(
    driver: Driver, server_of: Callable[..., Server], engine_at: Callable[..., Engine]
) -> None:
    """Its port is not the one that MariaDB knows the client by: what runs under the number is looked at."""
    server = server_of(driver)
    with HAProxy(server) as balancer:
        engine = engine_at(driver.url(balancer.url()))
        assert overruns(engine, driver, server) == {"deadline": 1}
        engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS, ids=str)
def test_where_no_second_connection_is_to_be_had_the_socket_is_cut(
    driver: Driver, server_of: Callable[..., Server], engine_at: Callable[..., Engine]
) -> None:
    server = server_of(driver)
    with FaultProxy(server.host, server.port) as proxy:
        engine = engine_at(driver.url(server.url_through(proxy.host, proxy.port)))
        refusing: list[int] = []

        def refuse(connection: Connection, *ignored: object) -> None:
            if "120" in str(ignored) and not refusing:
                refusing.append(1)
                proxy.refuse()

        event.listen(engine, "before_cursor_execute", refuse)
        event.listen(engine, "handle_error", lambda context: proxy.up())
        assert overruns(engine, driver, server, cut=True) == {}  # SQLAlchemy has thrown it away itself
        engine.dispose()
    for (number,) in server.query(NUMBERS[driver.database]):
        server.terminate(number)  # nobody could


NUMBERS = {kind: sql.replace("count(*)", "pid" if kind == "postgresql" else "id") for kind, sql in RUNNING.items()}


def test_the_second_connection_to_mariadb_is_opened_as_the_engine_opens_its_own(
    server_of: Callable[..., Server], engine_at: Callable[..., Engine]
) -> None:
    """With a password that changes, which a listener puts in; and past the pool, which has one connection."""
    driver = driver_named("pymysql")
    server = server_of(driver)
    server.query("create or replace user rotating@'%%' identified by 'today'")
    server.query("grant select on *.* to rotating@'%%'")
    engine = engine_at(driver.url(server.url()).set(username="rotating", password="yesterday"))
    opened: list[object] = []

    def put_in(dialect: object, record: object, arguments: object, keywords: dict[str, Any]) -> None:
        opened.append(record)
        keywords["password"] = "today"

    event.listen(engine, "do_connect", put_in)
    assert overruns(engine, driver, server) == {"deadline": 1}
    assert opened[1] is None
    assert len(opened) == 3  # the pool's first one, the one that kills, the pool's next one


def test_creator_of_the_users_own_opens_it_too(
    server_of: Callable[..., Server], engine_at: Callable[..., Engine]
) -> None:
    import pymysql

    driver = driver_named("pymysql")
    server = server_of(driver)
    url = driver.url(server.url())
    opened: list[int] = []

    def creator() -> Any:
        opened.append(1)
        assert url.host is not None
        return pymysql.connect(
            host=url.host, port=url.port or 0, user=url.username, password=url.password or "", database=url.database,
            cursorclass=pymysql.cursors.DictCursor if len(opened) == 2 else pymysql.cursors.Cursor,
        )  # fmt: skip

    assert overruns(engine_at("mysql+pymysql://", creator=creator), driver, server) == {"deadline": 1}
    assert len(opened) == 3


def test_what_somebody_else_runs_under_the_number_is_left_alone(
    server_of: Callable[..., Server], engine_at: Callable[..., Engine]
) -> None:
    """As behind a balancer, where the second connection leads to another server."""
    driver = driver_named("pymysql")
    server = server_of(driver)
    engine, other = engine_at(driver.url(server.url())), engine_at(driver.url(server.url()))
    guard(engine)
    raised: list[BaseException] = []

    def sleep(connection: Connection) -> None:
        try:
            connection.execute(text("SELECT SLEEP(120)"))
        except exc.OperationalError as error:
            raised.append(error)

    def stop(link: Link, statement: str | None, seconds: float) -> None:
        way = cancel.way(link, statement, time.monotonic() - seconds)
        assert way is not None
        way()

    with engine.connect() as connection, other.connect() as theirs:
        link: Link = connection.connection.info[KEY]
        link.server_id = registry.link_of(theirs.connection.dbapi_connection, theirs.connection).server_id  # type: ignore[arg-type]
        thread = threading.Thread(target=sleep, args=(theirs,))
        thread.start()
        try:
            sql = RUNNING["mariadb"]
            wait_until(lambda: server.query(sql) == [(1,)], timeout=PATIENCE, what="the query")
            for statement, seconds in ((None, 0.0), ("SELECT 1", 0.0), ("SELECT SLEEP(120)", 1000.0)):
                with pytest.raises(LookupError, match="not known to be this query"):
                    stop(link, statement, seconds)
            assert server.query(sql) == [(1,)]
            # What was sent at that time and reads the same: there is a proxy in between, with ports of its own.
            [(taken,)] = server.query(
                "select time_ms / 1000 from information_schema.processlist where info like 'SELECT SLEEP%%'"
            )
            stop(link, "SELECT SLEEP(%s)", float(taken))
        finally:
            for (number,) in server.query(NUMBERS["mariadb"]):
                server.terminate(number)
            thread.join()
    assert "interrupted" in str(raised[0])


def test_nothing_is_done_for_a_driver_that_is_not_known() -> None:
    class Unknown:
        pass

    connection = Unknown()
    link = Link(connection, None, gone=registry.forget)
    assert cancel.way(link) is None
