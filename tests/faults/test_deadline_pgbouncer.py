"""Behind a PgBouncer whose server is down, or stopped: it takes connections all the same, and has their queries wait.

For `query_wait_timeout`, which is two minutes by default. With a deadline a request has its 503 long before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import pytest
from sqlalchemy import Engine, create_engine, text
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.drivers import DRIVERS, Driver
from wsgi_dbguard.lab.pgbouncer import PgBouncer, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DEADLINE, PING_TIMEOUT, CONNECT_TIMEOUT = 1.0, 1.0, 2.0
LONG = 30.0  # seconds; much less than query_wait_timeout, and enough on a busy machine
PATIENCE = 60.0
QUICK = ("psycopg2", "transaction")
OF_POSTGRESQL = [each for each in DRIVERS if each.database == "postgresql"]
Mode = Literal["transaction", "session"]


@pytest.fixture(scope="module")
def running() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def server(running: PostgreSQL) -> Iterator[PostgreSQL]:
    """Runs again at the end, whatever the test has done to it."""
    yield running
    running.resume()
    running.start()


@pytest.fixture
def settings() -> dict[str, str]:
    """PgBouncer's, beside the lab's."""
    return {}


@pytest.fixture
def pooler(server: PostgreSQL, mode: Mode, settings: dict[str, str]) -> Iterator[PgBouncer]:
    try:
        pooler = PgBouncer(server, mode=mode, settings=settings)
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with pooler:
        yield pooler


@pytest.fixture
def engine(driver: Driver, pooler: PgBouncer) -> Iterator[Engine]:
    engine = create_engine(driver.url(pooler.url()), pool_size=1, max_overflow=0)
    yield engine
    engine.dispose()


def guarded(engine: Engine, deadline: float | None = DEADLINE) -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            answer = connection.scalar(text("SELECT 'well'"))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(answer).encode()]

    return DBGuard(
        application, engine, deadline=deadline, ping_timeout=PING_TIMEOUT, connect_timeout=CONNECT_TIMEOUT,
        retry_after=0.1,
    )  # fmt: skip


LEAVE: dict[str, Callable[[PostgreSQL], object]] = {"down": PostgreSQL.stop, "stopped": PostgreSQL.pause}


@pytest.mark.parametrize(
    ("driver", "mode"),
    [
        pytest.param(driver, mode, marks=() if (driver.name, mode) == QUICK else pytest.mark.slow)
        for driver in OF_POSTGRESQL
        for mode in ("transaction", "session")
    ],
    ids=str,
)
@pytest.mark.parametrize("state", LEAVE)
@pytest.mark.parametrize("before", ["used", "new", "new pooler"])
def test_the_request_has_its_503_in_time(
    server: PostgreSQL, pooler: PgBouncer, engine: Engine, state: str, before: str
) -> None:
    """`before`: the pool had a connection; the pooler had one, of somebody else's; nobody had."""
    app = guarded(engine)
    if before == "used":
        assert Client(app).get("/").text == "well"
    elif before == "new":
        other = create_engine(pooler.url())
        with other.connect() as connection:
            connection.execute(text("SELECT 1"))
        other.dispose()
    LEAVE[state](server)
    begun = time.monotonic()
    response = Client(app).get("/", buffered=True)
    seconds = time.monotonic() - begun
    assert response.status_code == 503
    assert response.json is not None
    assert response.json["type"] == "urn:wsgi-dbguard:unavailable"
    assert seconds < LONG
    server.resume()
    server.start()
    wait_until(lambda: Client(app).get("/").text == "well", timeout=PATIENCE, what="the pool to be well", interval=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "mode"), [(OF_POSTGRESQL[0], "transaction")], ids=str)
@pytest.mark.parametrize("settings", [{"query_wait_timeout": "6"}])
def test_without_a_deadline_it_waits_for_as_long_as_the_pooler_does(server: PostgreSQL, engine: Engine) -> None:
    app = guarded(engine, deadline=None)
    assert Client(app).get("/").text == "well"
    server.stop()
    begun = time.monotonic()
    assert Client(app).get("/").status_code == 503
    assert time.monotonic() - begun >= 5.0  # it counts from one of its own rounds to the next
