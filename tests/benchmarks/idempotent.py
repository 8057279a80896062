"""What an Idempotency-Key costs: a request that inserts one row, without `Idempotent`, with it, and with a key."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from checkouts import place
from measuring import Effort, Report, measure
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from wsgi_dbguard.idempotency import Idempotent, create_table
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.proxy import FaultProxy

__all__ = ["run"]

_numbers = count()


def run(effort: Effort, report: Report) -> None:
    for kind, driver in ((PostgreSQL, "psycopg2"), (MariaDB, "pymysql")):
        try:
            server = kind()
        except ServerMissing as missing:
            report.skip(kind.name, missing)
            continue
        with server, FaultProxy(server.host, server.port) as proxy:
            server.query("create table orders (item varchar(40))")
            for delay in effort.served_delays:
                proxy.delay(delay)
                address = (proxy.host, proxy.port) if delay else (server.host, server.port)
                _posts(effort, report, server.url_through(*address, driver), place(driver, delay))
            _table(effort, report, server.url(driver), driver)


def inserts(engine: Engine) -> Any:
    statement = text("insert into orders values (:item)")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        item = environ["wsgi.input"].read(5).decode()
        with Session(engine) as session:
            session.execute(statement, {"item": item})
            session.commit()
        start_response("201 Created", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    return app


def post(app: Any, *, key: str | None = None, fresh: bool = False) -> Callable[[], None]:
    """A request to `app`; with the key `key`, or with a `fresh` one each time."""

    def request() -> None:
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/",
            "CONTENT_LENGTH": "5",
            "wsgi.input": io.BytesIO(b"apple"),
        }
        if key or fresh:
            environ["HTTP_IDEMPOTENCY_KEY"] = key or f"key-{next(_numbers)}"
        for _ in app(environ, lambda *args: None):
            pass

    return request


def _posts(effort: Effort, report: Report, url: str, where: str) -> None:
    bare, ours = create_engine(url), create_engine(url)
    create_table(ours)
    keyed = Idempotent(inserts(ours), ours, principal=None)
    contenders = {
        "nothing": post(inserts(bare)),
        "no key": post(keyed),
        "new key": post(keyed, fresh=True),
        "repeated": post(keyed, key="same"),
    }
    report.row("insert", where, measure(contenders, effort)["wall"], clock="wall")
    bare.dispose()
    ours.dispose()


def _table(effort: Effort, report: Report, url: str, driver: str) -> None:
    """With so many keys in the table before."""
    engine = create_engine(url)
    create_table(engine)
    keyed = Idempotent(inserts(engine), engine, principal=None)
    for number in effort.keys:
        for _ in range(number):
            post(keyed, fresh=True)()
        found = measure({"new key": post(keyed, fresh=True), "repeated": post(keyed, key="same")}, effort)
        report.row("insert, keys in the table", f"{driver}, {number:,}", found["wall"], clock="wall")
    engine.dispose()
