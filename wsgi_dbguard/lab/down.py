"""A database that is down for a while: what its clients' clients are told, and how often it is tried.

Each contender is a gunicorn as in restarts.py, with a proxy of its own before the database, which counts the attempts
to connect. ::

    with PostgreSQL() as database:
        told = down(database, "psycopg2", seconds=30.0, directory=directory)
    print(told[Contender.GUARD].attempts, told[Contender.GUARD].answers.percentile(99))
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .contenders import Contender
from .load import LoadGenerator, LoadResult
from .mariadb import MariaDB
from .postgres import PostgreSQL
from .process import wait_until
from .proxy import FaultProxy
from .restarts import serve
from .servers import Server

__all__ = ["PROCESSES", "Down", "down"]

PROCESSES = 2  # workers of each server


@dataclass
class Down:
    """What one contender made of it."""

    attempts: int
    """To connect, while it was down."""
    answers: LoadResult
    """While it was down."""
    replays: int
    """Requests that arrived at the application a second time, in all."""
    back: float
    """Seconds from when the database was back to the first right answer."""


def down(
    database: PostgreSQL | MariaDB,
    driver: str,
    *,
    seconds: float,
    directory: Path,
    clients: int = 50,
    rate: float = 100.0,
    hold: float = 0.0,
    contenders: tuple[Contender, ...] = (Contender.PRE_PING, Contender.GUARD),
) -> Mapping[Contender, Down]:
    """Stop `database` for `seconds`, while `clients` clients send `rate` requests per second to each contender."""
    # PyMySQL reads all certificates of the system for each attempt, which takes longer than all the rest.
    plain = {"ssl_disabled": "true"} if driver == "pymysql" else {}
    with ExitStack() as stack:
        proxies: dict[Contender, FaultProxy] = {}
        servers: dict[Contender, Server] = {}
        for each in contenders:
            proxy = proxies[each] = stack.enter_context(FaultProxy(database.host, database.port))
            url = database.url_through(proxy.host, proxy.port, driver, **plain)
            server = servers[each] = serve(each, url, directory, WSGI_DBGUARD_HOLD=str(hold))
            stack.enter_context(server)
        for each in contenders:
            wait_until(lambda each=each: _status(servers[each]) == 200, timeout=60.0, what=f"{each}")  # type: ignore[misc]
        database.stop()
        before = {each: len(proxy.history) for each, proxy in proxies.items()}
        loads = {
            each: LoadGenerator(
                f"{server.url}/echo?token={{token}}", threads=clients, rate=rate, seconds=seconds, timeout=60.0
            )
            for each, server in servers.items()
        }
        with ThreadPoolExecutor(len(contenders)) as threads:
            answers = dict(zip(loads, threads.map(LoadGenerator.run, loads.values()), strict=True))
        attempts = {each: len(proxy.history) - before[each] for each, proxy in proxies.items()}
        with ThreadPoolExecutor(len(contenders)) as threads:
            firsts = threads.map(_first_success, servers.values())
            database.start()
            began = time.monotonic()
            backs = dict(zip(servers, (max(0.0, first - began) for first in firsts), strict=True))
        return {
            each: Down(
                attempts=attempts[each],
                answers=answers[each],
                replays=server.child.output().count(" runs again"),
                back=backs[each],
            )
            for each, server in servers.items()
        }


def _first_success(server: Server) -> float:
    wait_until(lambda: _status(server) == 200, timeout=60.0, what=f"a right answer of {server!r}")
    return time.monotonic()


def _status(server: Server) -> int:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60.0)
    try:
        connection.request("GET", "/echo?token=one")
        with connection.getresponse() as response:
            return response.status
    finally:
        connection.close()
