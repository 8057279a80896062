"""What an Idempotency-Key costs: a request that inserts one row, without `Idempotent`, with it, and with a key.

All contenders run interleaved in one process and one run; medians, and differences of the same round. Run it with::

    .ci/venv python tests/benchmarks/keyed.py [--rounds N]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from cost import measure, summary  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from wsgi_dbguard.idempotency import Idempotent, create_table
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.proxy import FaultProxy

ONE_WAY = 0.001  # seconds that the proxy holds each byte, in each direction
_numbers = count()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=51, help="samples for each contender (default 51)")
    rounds = parser.parse_args().rounds
    names = ("nothing", "no key", "new key", "repeated", "no key adds", "new key adds")
    table = Table("µs, medians", *names, "new / nothing")
    for server, driver, options in ((PostgreSQL(), "psycopg2", {}), (MariaDB(), "pymysql", {"ssl_disabled": "true"})):
        with server, FaultProxy(server.host, server.port) as proxy:
            proxy.delay(ONE_WAY)
            server.query("create table orders (item varchar(40))")
            for place, url in (
                ("loopback", server.url(driver, **options)),
                ("1 ms each way", server.url_through(proxy.host, proxy.port, driver, **options)),
            ):
                bare, ours = create_engine(url), create_engine(url)
                create_table(ours)
                keyed = Idempotent(inserts(ours), ours, principal=None)
                contenders = {
                    "nothing": post(inserts(bare)),
                    "no key": post(keyed),
                    "new key": post(keyed, fresh=True),
                    "repeated": post(keyed, key="same"),
                }
                found = summary(measure(contenders, rounds, 0.05) | {"guard": [1.0] * rounds})
                ratio = found["new key"] / found["nothing"]
                table.add_row(f"{driver}, {place}", *(f"{found[name]:.0f}" for name in names), f"{ratio:.2f}")
                bare.dispose()
                ours.dispose()
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
