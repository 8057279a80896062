"""A query that takes too long, on a real server: is it answered in time, stopped in the database, and forgotten?

`overrun` has a request run into its deadline, `abort` has a worker of gunicorn aborted in the middle of a query. Both
look at the database from outside, and ask the same pool or server once more.

Example::

    with PostgreSQL() as database:
        print(overrun(SERVERS["gunicorn gthread"], driver_named("psycopg2"), database, directory=directory))
"""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .drivers import Driver
from .mariadb import MariaDB
from .postgres import PostgreSQL
from .process import wait_until
from .servers import APPS, HOOKS, Server, gunicorn, uwsgi

__all__ = ["DEADLINE", "LONG", "SERVERS", "Outcome", "Start", "abort", "asleep", "overrun"]

Database = PostgreSQL | MariaDB
Start = Callable[..., Server]

DEADLINE = 1.0  # seconds
LONG = 120.0  # seconds that the query takes if nobody stops it
PATIENCE = 60.0  # seconds, however busy the machine; less than LONG

_ASLEEP = {
    PostgreSQL: "select count(*) from pg_stat_activity where state = 'active' and query like 'SELECT pg_sleep%%'",
    MariaDB: "select count(*) from information_schema.processlist where info like 'SELECT sleep%%'",
}


@dataclass(frozen=True)
class Outcome:
    """What became of the request and of its query."""

    status: int
    """0: the server closed the connection without an answer."""
    seconds: float
    """Until the client had its answer; of `abort`: since the query was seen in the database."""
    kind: str
    """Of the problem, for a 503."""
    ended: float
    """Seconds from the answer until the database had nothing left of it."""
    right: bool
    """Whether the next request had its answer."""


def _gunicorn(*options: str) -> Start:
    def start(app: str, *more: str, **variables: Any) -> Server:
        return gunicorn(app, "--workers=1", *options, *more, **variables)

    return start


def _uwsgi(*options: str) -> Start:
    def start(app: str, *more: str, **variables: Any) -> Server:
        return uwsgi(app, "--master", *options, *more, **variables)

    return start


SERVERS: dict[str, Start] = {
    "gunicorn sync": _gunicorn("--worker-class=sync"),
    "gunicorn gthread": _gunicorn("--worker-class=gthread", "--threads=2"),
    "gunicorn gevent": _gunicorn("--worker-class=gevent"),
    "uWSGI threads": _uwsgi("--processes=1", "--threads=2"),
}


def asleep(database: Database) -> int:
    """How many of the long queries run in the database."""
    [(count,)] = database.query(_ASLEEP[type(database)])
    return int(count)


def overrun(start: Start, driver: Driver, database: Database, *, directory: Path) -> Outcome:
    """One request that takes `LONG` seconds in the database, behind a deadline of `DEADLINE`.

    Raises TimeoutError when its query is still there after `PATIENCE` seconds, or the server does not start.
    """
    with _serving(start, driver, database, directory, deadline=f"{DEADLINE}") as server:
        url = server.ready()
        _ask(url, "/echo?token=before")  # the first connection takes its time
        begun = time.monotonic()
        status, body = _ask(url, f"/slow?token=slow&seconds={LONG}")
        outcome = _outcome(database, url, status, body, time.monotonic() - begun)
        server.child.kill()  # its orderly end takes a second or two, and is no matter here
        return outcome


def abort(
    start: Start,
    driver: Driver,
    database: Database,
    *,
    guarded: bool,
    directory: Path,
    timeout: int = 0,
    patience: float = PATIENCE,
) -> Outcome:
    """SIGABRT for a worker of gunicorn that is in a query.

    timeout: seconds after which gunicorn sends it, and SIGKILL a second later, or for a guarded server `PATIENCE` later
    (see `_LATE`). 0: it is sent from here, as soon as the query runs, and nobody kills.

    Raises TimeoutError when the query is still there `patience` seconds after that, or the server does not start.
    """
    config = _late(directory) if guarded else None
    with _serving(start, driver, database, directory, f"--timeout={timeout}", guarded=guarded, config=config) as server:
        url = server.ready()
        connection = _connected(url)
        try:
            connection.request("GET", f"/slow?token=slow&seconds={LONG}")
            wait_until(lambda: asleep(database), timeout=PATIENCE, what="the query in the database")
            begun = time.monotonic()
            if not timeout:
                _, worker = server.processes
                os.kill(worker, signal.SIGABRT)
            status, body = _answer(connection)
        finally:
            connection.close()
        outcome = _outcome(database, url, status, body, time.monotonic() - begun, patience)
        server.child.kill()
        return outcome


# On a busy machine a second may not be enough for the guard to stop the query.
_LATE = f"""{HOOKS}
control_socket_disable = True

import signal
import time
from gunicorn.arbiter import Arbiter

aborted = {{}}
kill_now = Arbiter.kill_worker

def kill_worker(arbiter, pid, number):
    if number == signal.SIGABRT:
        aborted[pid] = time.monotonic()
    if number != signal.SIGKILL or pid not in aborted or time.monotonic() > aborted[pid] + {PATIENCE}:
        kill_now(arbiter, pid, number)

Arbiter.kill_worker = kill_worker
"""


def _late(directory: Path) -> Path:
    """A gunicorn.conf.py by which an aborted worker is killed later than by default."""
    path = directory / "late.conf.py"
    path.write_text(_LATE)
    return path


def _serving(
    start: Start, driver: Driver, database: Database, directory: Path, *options: str, guarded: bool = True,
    deadline: str = "", **more: Any,
) -> Server:  # fmt: skip
    variables = {"DATABASE_URL": driver.url(database.url()).render_as_string(hide_password=False)}
    if deadline:
        # Patience: on a busy machine a cancel takes its time, and its socket is not to be cut before.
        variables |= {"WSGI_DBGUARD_DEADLINE": deadline, "WSGI_DBGUARD_PING_TIMEOUT": "20"}
    app = "trials:guarded()" if guarded else "trials:unguarded()"
    return start(app, *options, guarded=guarded, directory=directory, path=[APPS], **more, **variables)


def _outcome(
    database: Database, url: str, status: int, body: bytes, seconds: float, patience: float = PATIENCE
) -> Outcome:
    answered = time.monotonic()
    wait_until(lambda: not asleep(database), timeout=patience, what="the end of the query in the database")
    ended = time.monotonic() - answered
    kind = next(
        (each for each in ("unavailable", "outcome-unknown") if f"urn:wsgi-dbguard:{each}".encode() in body), ""
    )
    following = [_ask(url, f"/echo?token=after-{number}") for number in range(2)]
    right = following == [(200, f"after-{number}".encode()) for number in range(2)]
    return Outcome(status, seconds, kind, ended, right)


def _connected(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return HTTPConnection(parts.hostname, parts.port, timeout=LONG)


def _answer(connection: HTTPConnection) -> tuple[int, bytes]:
    try:
        with connection.getresponse() as response:
            return response.status, response.read()
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return 0, b""


def _ask(url: str, target: str) -> tuple[int, bytes]:
    connection = _connected(url)
    try:
        connection.request("GET", target)
        return _answer(connection)
    finally:
        connection.close()
