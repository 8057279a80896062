"""The ledger: what clients were told, held against what the database has.

Concurrent POSTs each insert a row of their own, while connections are killed at random moments, by the server and on
the way to it, before, during and after COMMIT. Every 2xx has its row exactly once, every 503 "unavailable" has none;
only "outcome-unknown" may be either.

Example::

    with PostgreSQL() as database:
        outcome = ledger(database, "psycopg2", requests=1000)
    assert not outcome.wrong
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard

from .mariadb import MariaDB
from .postgres import PostgreSQL
from .proxy import FaultProxy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["FAULTS", "MOMENTS", "RIGHT", "Outcome", "ledger"]

SEED = 20261120
THREADS = 8
MOMENTS = ("begin", "inserted", "commit", "committed")
FAULTS = ("terminate", "reset", "drop request", "drop reply")
RIGHT = {("created", 1), ("unavailable", 0), ("outcome-unknown", 0), ("outcome-unknown", 1)}
"""What a client may be told, and how many rows there may be of it then."""


@dataclass
class Outcome:
    """`found`: requests by what their clients were told and how many rows they have; `struck`: faults by moment."""

    found: Counter[tuple[str, int]]
    struck: Counter[tuple[str, str]]
    again: int
    """Requests that ran a second time."""

    @property
    def wrong(self) -> int:
        """Requests with a row that is lost or doubled, or that is there though its client was told that it is not."""
        return sum(number for kind, number in self.found.items() if kind not in RIGHT)


def ledger(database: PostgreSQL | MariaDB, driver: str, *, requests: int) -> Outcome:
    """Send so many requests, of which nearly a third meet a fault."""
    with FaultProxy(database.host, database.port) as proxy:
        database.query("create table ledger (number int)")  # without a key: what is doubled shall be seen
        # PyMySQL reads all certificates of the system for each connection.
        plain = {"ssl_disabled": "true"} if driver == "pymysql" else {}
        engine = create_engine(database.url_through(proxy.host, proxy.port, driver, **plain), pool_size=THREADS)
        application = _Application(engine, proxy, database, requests)
        # A reset that comes while somebody connects looks like a database that is away: nobody is turned down for that.
        clients = _Clients(DBGuard(application, engine, replay="uncommitted", hold=60.0, retry_after=0.1))
        try:
            with ThreadPoolExecutor(THREADS) as threads:
                told = list(threads.map(clients.post, range(requests)))
        finally:
            engine.dispose()
        rows = Counter(number for (number,) in database.query("select number from ledger"))
        found = Counter((answer, rows[number]) for number, answer in enumerate(told))
        return Outcome(found, application.struck, clients.attempts[2])


class _Application:
    """It runs into faults by a plan for each request, so that they can be repeated."""

    def __init__(self, engine: Engine, proxy: FaultProxy, database: PostgreSQL | MariaDB, requests: int) -> None:
        self.engine = engine
        self.proxy = proxy
        self.database = database
        self.backend = text(f"select {'pg_backend_pid' if database.name == 'PostgreSQL' else 'connection_id'}()")
        dice = random.Random(SEED)
        self.plan = [
            (dice.choice(MOMENTS), dice.choice(FAULTS), dice.random() < 0.5) if dice.random() < 0.3 else None
            for _ in range(requests)
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


class _Clients:
    def __init__(self, guard: DBGuard) -> None:
        self.guard = guard
        self.attempts: Counter[int] = Counter()

    def post(self, number: int) -> str:
        started: list[str] = []
        body = str(number).encode()
        environ = create_environ(method="POST", content_type="text/plain")
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        answer: Any = self.guard(environ, lambda status, *more: started.append(status))  # type: ignore[arg-type]
        try:
            content = b"".join(answer)
        finally:
            if hasattr(answer, "close"):
                answer.close()
        self.attempts[environ["wsgi_dbguard.attempt"]] += 1
        return "created" if started[0].startswith("201") else json.loads(content)["type"].rpartition(":")[2]
