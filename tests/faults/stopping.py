"""An application whose server its views stop as they like: what a request waits for, and what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, text
from werkzeug.test import Client, TestResponse

from tests.letting_go import let_go
from wsgi_dbguard import DBGuard, guard
from wsgi_dbguard.lab.drivers import Driver
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

DEADLINE, PING_TIMEOUT = 1.0, 1.0
LONG = 30.0  # seconds after which the server goes on by itself; what has waited for that has failed
PATIENCE = 120.0
Server = PostgreSQL | MariaDB
View = Callable[["Site"], Iterable[bytes]]


class Site:
    """An application of one view, which stops the server where it likes; and of ``/after``, when it goes on."""

    def __init__(self, engine: Engine, server: Server) -> None:
        self.engine = engine
        self.server = server
        self.view: View = lambda site: [b""]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/after":
            with self.engine.connect() as connection:
                body: Iterable[bytes] = [str(connection.scalar(text("SELECT 'well'"))).encode()]
        else:
            body = self.view(self)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body


@contextmanager
def site_of(driver: Driver, server: Server) -> Iterator[Site]:
    server.query("create table if not exists ended (name varchar(20))")
    server.query("delete from ended")
    engine = create_engine(driver.url(server.url()), pool_size=2, max_overflow=0)
    yield Site(engine, server)
    engine.dispose()


def stopped(server: Server) -> AbstractContextManager[None]:
    """While this lasts the server may be stopped; it goes on at the end, or after `LONG`."""
    return let_go(server.resume, after=LONG)


def ask(site: Site, view: View, *, method: str = "GET", **settings: Any) -> tuple[TestResponse, float]:
    """The answer of `view`, and after how many seconds it came. The requests around it have theirs."""
    site.view = view
    settings = {"deadline": DEADLINE, "ping_timeout": PING_TIMEOUT, **settings}
    patient = DBGuard(site, site.engine, **{**settings, "deadline": PATIENCE})
    assert Client(patient).get("/after").text == "well"
    with stopped(site.server):
        begun = time.monotonic()
        response = Client(DBGuard(site, site.engine, **settings)).open("/", method=method, buffered=True)
        seconds = time.monotonic() - begun
    assert Client(patient).get("/after").text == "well"
    return response, seconds


def replaced(site: Site) -> tuple[dict[str, int], int]:
    """Why connections were replaced at checkout, and how often all of them were."""
    stats = guard(site.engine).stats()
    return stats["replaced"], stats["invalidations"]


def instead(
    engine: Engine, name: str, *, before: Callable[[], object] | None = None, after: Callable[[], object] | None = None
) -> None:
    """Have something happen around the next call of this method of the dialect."""
    method = getattr(engine.dialect, name)

    def once(*args: Any) -> Any:
        setattr(engine.dialect, name, method)
        try:
            if before is not None:
                before()
            return method(*args)
        finally:
            if after is not None:
                after()

    setattr(engine.dialect, name, once)


def kind(response: TestResponse) -> str:
    return str(response.json["type"]).rpartition(":")[2] if response.is_json and response.json else response.text


def insert(site: Site) -> Iterable[bytes]:
    with site.engine.connect() as connection:
        connection.execute(text("INSERT INTO ended VALUES ('once')"))
        site.server.pause()
        connection.commit()
    return [b"saved"]
