"""A shop on a real gunicorn and PostgreSQL, by one of the frameworks, wrapped by the guard or not, and its faults.

The applications are apps/shop_*.py, each written as users of its framework write theirs, and all with the same pages:

- ``GET /items``, ``GET /items.csv`` (a stream whose first line needs no database), ``POST /items`` (``name=…``).
- ``POST /items/1/sell``: reads the row, then changes it; its class has a ``version_id_col``.
- ``GET /report``: gets over an OperationalError, and then fails by a bug. ``GET /broken``: a bug alone.

To have requests at a known point it holds locks: the whole table, one row, or an advisory lock that a trigger wants at
COMMIT. The applications know nothing of that.

Example::

    with Shop("shop_flask", postgres, directory, guarded=True) as shop, shop.locked("lock table items"):
        answer = shop.later("GET", "/items")
        postgres.terminate(*shop.waiting(1))
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import psycopg2

from .postgres import PostgreSQL
from .process import wait_until
from .proxy import FaultProxy
from .server import NAME
from .servers import APPS, Server, gunicorn

__all__ = ["COMMIT", "TABLE", "Answer", "Shop", "row"]

TABLE = "lock table items"
COMMIT = "select pg_advisory_xact_lock(20261121)"
PATIENCE = 60.0  # seconds, for what takes a few milliseconds on a machine that is not busy
_SCHEMA = """
    create schema {0};
    create table {0}.items (
        id serial primary key, name text unique not null, stock int not null, version int not null
    );
    alter sequence {0}.items_id_seq restart 100;
    create function {0}.wait_at_commit() returns trigger language plpgsql as
        $$ begin perform pg_advisory_xact_lock(20261121); return null; end $$;
    create constraint trigger wait_at_commit after insert on {0}.items deferrable initially deferred
        for each row execute function {0}.wait_at_commit();
"""
_STOCK = """
    delete from {0}.items;
    insert into {0}.items (id, name, stock, version) values (1, 'anvil', 10, 1), (2, 'bellows', 10, 1);
"""


def row(number: int) -> str:
    """A lock on one row: who wants to change it has to wait, who reads it has not."""
    return f"select 1 from items where id = {number} for update"


@dataclass(frozen=True)
class Answer:
    """What a client got. `problem`: the last part of the problem's type, if it is one of the guard's."""

    status: int
    problem: str
    body: str

    def __str__(self) -> str:
        return f"{self.status} {self.problem}".strip()


class Shop:
    """One application, served until its `with` block is left, with a table `items` of its own.

    `variables` are added to its environment. With one of its `threads`, a session that is made for each thread is one
    for all requests.
    """

    def __init__(
        self, app: str, postgres: PostgreSQL, directory: Path, *, guarded: bool, threads: int = 1, **variables: str
    ) -> None:
        self.postgres = postgres
        self._name = f"{app}_{'guarded' if guarded else 'unguarded'}_{threads}"  # of application and schema
        self._app = app
        self._directory = directory
        self._guarded = guarded
        self._threads = threads
        self._variables: dict[str, Any] = variables
        self._stack = ExitStack()
        self._servers = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.postgres.query(_SCHEMA.format(self._name))
            stack.callback(self.postgres.query, f"drop schema {self._name} cascade")
            self.proxy = stack.enter_context(FaultProxy(self.postgres.host, self.postgres.port))
            stack.enter_context(self._servers)
            self._clients = ThreadPoolExecutor(8)
            stack.callback(self._clients.shutdown)
            self.restart()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def restart(self) -> None:
        """A new server, and two items in the table: as in the beginning."""
        self._servers.close()
        url = self.postgres.url_through(
            self.proxy.host,
            self.proxy.port,
            "psycopg2",
            application_name=self._name,
            options=f"-csearch_path={self._name}",
        )
        self.server: Server = self._servers.enter_context(
            gunicorn(
                f"{'wrapped' if self._guarded else self._app}:application",
                "--worker-class=gthread",
                f"--threads={self._threads}",
                guarded=self._guarded,
                directory=self._directory,
                path=[APPS],
                APPLICATION=self._app,
                DATABASE_URL=url,
                **self._variables,
            )
        )
        self.server.ready()
        self.restock()

    def restock(self) -> None:
        """Two items in the table, as in the beginning."""
        self.postgres.query(_STOCK.format(self._name))

    # Requests

    def open(self, method: str, path: str, **form: str) -> http.client.HTTPResponse:
        """Send a request and return when its headers are there; closing the response closes the connection."""
        address = urlsplit(self.server.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE)
        body = urlencode(form) if form else None
        headers = {"Connection": "close"}
        if body:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def ask(self, method: str, path: str, **form: str) -> Answer:
        """Send a request, and read its answer."""
        with self.open(method, path, **form) as response:
            body = response.read().decode()
            problem = ""
            if response.headers.get_content_type() == "application/problem+json":
                problem = json.loads(body)["type"].rpartition(":")[2]
            return Answer(response.status, problem, body)

    def later(self, method: str, path: str, **form: str) -> Future[Answer]:
        """`ask`, in a thread."""
        return self._clients.submit(self.ask, method, path, **form)

    # Faults

    @contextmanager
    def locked(self, statement: str) -> Iterator[None]:
        """Hold what `statement` locks."""
        holder = psycopg2.connect(
            host=str(self.postgres.socket_directory), port=self.postgres.port, user=NAME, dbname=NAME
        )
        try:
            with holder.cursor() as cursor:
                cursor.execute(f"set lock_timeout = '{PATIENCE:.0f} s'; set search_path = {self._name}")
                cursor.execute(statement)
            yield
        finally:
            holder.close()

    def backends(self, condition: str = "true") -> list[int]:
        """Process ids of the server's ends of the application's connections, where `condition` holds."""
        return [
            pid
            for (pid,) in self.postgres.query(
                f"select pid from pg_stat_activity where application_name = %s and {condition} order by pid",
                self._name,
            )
        ]

    def waiting(self, count: int) -> list[int]:
        """Wait until so many of the application's backends wait for a lock, and return them."""

        def found() -> list[int]:
            pids = self.backends("wait_event_type = 'Lock'")
            return pids if len(pids) == count else []

        return wait_until(found, timeout=PATIENCE, what=f"{count} requests that wait")

    def names(self) -> list[str]:
        """The items that there are."""
        return [name for (name,) in self.postgres.query(f"select name from {self._name}.items order by name")]
