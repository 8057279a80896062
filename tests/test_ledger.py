"""The ledger: what clients were told, held against what the database has.

Concurrent POSTs each insert a row of their own, while connections are killed at random moments, by the server and on
the way to it, before, during and after COMMIT. Every 2xx has its row exactly once, every 503 "unavailable" has none;
only "outcome-unknown" may be either.
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.proxy import FaultProxy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = pytest.mark.slow

SEED = 20261120
REQUESTS = 1000
THREADS = 8
MOMENTS = ("begin", "inserted", "commit", "committed")
FAULTS = ("terminate", "reset", "drop request", "drop reply")


class Ledger:
    """An application, and the faults that it runs into: by a plan for each request, so that they can be repeated."""

    def __init__(self, engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB) -> None:
        self.engine = engine
        self.proxy = proxy
        self.database = database
        self.backend = text(f"select {'pg_backend_pid' if database.name == 'PostgreSQL' else 'connection_id'}()")
        dice = random.Random(SEED)
        self.plan = [
            (dice.choice(MOMENTS), dice.choice(FAULTS), dice.random() < 0.5) if dice.random() < 0.3 else None
            for _ in range(REQUESTS)
        ]
        self.struck: Counter[tuple[str, str]] = Counter()
        event.listen(engine, "commit", lambda connection: self.strike(connection.info.pop("number", None), "commit"))

    def strike(self, number: int | None, moment: str, pid: int = 0) -> None:
        planned = None if number is None else self.plan[number]
        if number is None or planned is None or planned[0] != moment:
            return
        _, fault, again = planned
        if not again:  # else the second run meets it as well
            self.plan[number] = None
        self.struck[moment, fault] += 1
        if fault == "terminate":
            self.database.terminate(*([pid] if pid else self.database.backends()[:1]))
        elif fault == "reset":
            self.proxy.reset()  # everybody's
        else:
            self.proxy.drop_after(0, direction="client" if fault == "drop request" else "server")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        number = int(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        with Session(self.engine) as session:
            pid = session.scalar(self.backend) or 0
            session.connection().info["number"] = number
            self.strike(number, "begin", pid)
            session.execute(text("insert into ledger values (:number)"), {"number": number})
            self.strike(number, "inserted", pid)
            session.commit()
            self.strike(number, "committed", pid)
            session.scalar(text("select 1"))
        start_response("201 Created", [("Content-Type", "text/plain")])
        yield b"well"


@pytest.fixture(params=["psycopg2", "pymysql"])
def ledger(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> Iterator[Ledger]:
    try:
        server = PostgreSQL() if request.param == "psycopg2" else MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server as database, FaultProxy(database.host, database.port) as proxy:
        database.query("create table ledger (number int)")  # without a key: what is doubled shall be seen
        # PyMySQL reads all certificates of the system for each connection.
        plain = {"ssl_disabled": "true"} if request.param == "pymysql" else {}
        url = database.url_through(proxy.host, proxy.port, request.param, **plain)
        engine = make_engine(url, pool_size=THREADS)
        yield Ledger(engine, proxy, database)
        engine.dispose()


def test_no_row_is_lost_and_none_is_doubled(ledger: Ledger) -> None:
    # A reset that comes while somebody connects looks like a database that is away: nobody is turned down for that.
    guard = DBGuard(ledger, ledger.engine, replay="uncommitted", hold=60.0, retry_after=0.1)
    attempts: Counter[int] = Counter()

    def post(number: int) -> str:
        started: list[str] = []
        body = str(number).encode()
        environ = create_environ(method="POST", content_type="text/plain")
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        answer: Any = guard(environ, lambda status, *more: started.append(status))  # type: ignore[arg-type]
        try:
            content = b"".join(answer)
        finally:
            if hasattr(answer, "close"):
                answer.close()
        attempts[environ["wsgi_dbguard.attempt"]] += 1
        return started[0] if started[0].startswith("201") else json.loads(content)["type"].rpartition(":")[2]

    with ThreadPoolExecutor(THREADS) as threads:
        told = list(threads.map(post, range(REQUESTS)))
    rows = Counter(number for (number,) in ledger.database.query("select number from ledger"))
    found = Counter((answer, rows[number]) for number, answer in enumerate(told))

    allowed = {("201 Created", 1), ("unavailable", 0), ("outcome-unknown", 0), ("outcome-unknown", 1)}
    assert set(found) == allowed, found  # and every kind has come up
    assert set(ledger.struck) == {(moment, fault) for moment in MOMENTS for fault in FAULTS}
    assert attempts[2] > 20
