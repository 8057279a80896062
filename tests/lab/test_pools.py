"""Contenders are what they say: those that check their connections hand out no dead one, the others do."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from wsgi_dbguard.lab.drivers import driver_named
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.lab.server import DatabaseServer
from wsgi_dbguard.lab.servers import APPS

CHECKING = ("pool_pre_ping", "NullPool", "ping per request", "psycopg_pool", "PooledDB", "guard")


@pytest.fixture(scope="module", autouse=True)
def path() -> Iterator[None]:
    sys.path.append(str(APPS))
    yield
    sys.path.remove(str(APPS))


def serve(contender: str, engine: Engine, count: int = 1) -> Callable[[], None]:
    """A request with `count` checkouts. Raises what the application raises."""
    from pools import wrap

    def application(environ: Any, start_response: Any) -> list[bytes]:
        for _ in range(count):
            with engine.connect() as connection:
                connection.execute(text("select 1"))
        start_response("200 OK", [])
        return []

    served = wrap(contender, application, engine)

    def request() -> None:
        environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "wsgi.input": io.BytesIO()}  # POST: does not run again
        body = served(environ, lambda *ignored: print)
        getattr(body, "close", list)()

    return request


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize("contender", ["nothing", "pool_recycle", *CHECKING])
def test_dead_connection_is_handed_out_only_where_nobody_checks(
    running: PostgreSQL, contender: str, driver: str
) -> None:
    from pools import make_engine

    if contender == "psycopg_pool" and driver != "psycopg":
        with pytest.raises(ValueError, match="psycopg_pool is for psycopg"):
            make_engine(contender, running.url(driver))
        return
    engine = make_engine(contender, running.url(driver))
    request = serve(contender, engine)
    try:
        request()
        if contender != "NullPool":
            assert running.terminate(*running.backends()) > 0
        if contender in CHECKING:
            request()
        else:
            with pytest.raises(OperationalError):
                request()
    finally:
        engine.dispose()


def test_ping_per_request_is_one_for_all_checkouts_of_a_request(running: PostgreSQL) -> None:
    from pools import make_engine

    engine = make_engine("ping per request", running.url())
    request = serve("ping per request", engine, count=5)
    with mock.patch.object(engine.dialect, "do_ping", wraps=engine.dialect.do_ping) as ping:
        request()
        request()
    assert ping.call_count == 2
    engine.dispose()


@pytest.mark.parametrize("contender", ["psycopg_pool", "PooledDB"])
def test_pool_in_the_place_of_sqlalchemys_is_closed_with_the_engine(running: PostgreSQL, contender: str) -> None:
    from pools import make_engine

    engine = make_engine(contender, running.url("psycopg", application_name="closing"))
    serve(contender, engine)()
    open_there = "select count(*) from pg_stat_activity where application_name = 'closing'"
    assert running.query(open_there)[0][0] > 0
    engine.dispose()
    wait_until(lambda: running.query(open_there) == [(0,)], timeout=30, what="the end of the connections")


@pytest.mark.parametrize("name", ["psycopg2", "psycopg", "pymysql"])
def test_pooled_db_sends_what_pre_ping_sends(name: str, server_of: Callable[..., DatabaseServer]) -> None:
    """One ping at each checkout, and no transaction around it; one pool on top of another rolls back once."""
    from pools import make_engine

    server = server_of(driver_named(name))
    with FaultProxy(server.host, server.port) as proxy:

        def sent(contender: str) -> tuple[int, int]:
            engine = make_engine(contender, server.url_through(proxy.host, proxy.port, name))
            engine.raw_connection().close()
            before = proxy.snapshot()
            engine.raw_connection().close()
            after = proxy.snapshot()
            engine.dispose()
            (had, took), (ours, theirs) = (list(each.values())[-1] for each in (before, after))
            return ours - had, theirs - took

        assert sent("PooledDB") == sent("pool_pre_ping") > (0, 0)


def test_contender_that_nobody_knows_is_refused() -> None:
    from pools import make_engine

    with pytest.raises(ValueError, match="'magic' is none of nothing, pool_pre_ping"):
        make_engine("magic", "sqlite://")
