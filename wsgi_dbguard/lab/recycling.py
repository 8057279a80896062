"""Do workers that come and go under load keep their connections to themselves, and leave none behind?

`recycle` runs a server under a load that checks each answer, has something happen to its workers (see `setups`),
and looks at the connections from outside: who holds them while the server runs (`holders`), whether the transaction
that a preloaded application left open at import is still open and still uncommitted, and whether any backend is there
when the server has ended.

Requests that the server itself loses, because it closes a connection without an answer, are counted apart from those
that fail: an unguarded server with an import that opens nothing (`opening=False`) shows whether it does so anyway.

Example::

    with PostgreSQL() as database:
        outcome = recycle(SETUPS["gunicorn sync, preload, HUP"], database, guarded=True, directory=directory)
    assert outcome.clean, outcome
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from .holders import holders
from .load import LoadGenerator, LoadResult
from .mariadb import MariaDB
from .postgres import PostgreSQL
from .process import gone, wait_until
from .servers import APPS, Server, gunicorn, uwsgi

__all__ = ["SOME", "Act", "Database", "Outcome", "Running", "Setup", "recycle"]

Database = PostgreSQL | MariaDB
Act = Callable[["Running"], object]

TIMEOUT = 30.0  # seconds a client waits
SOME = 50  # requests that are answered when it has happened

_SPAWNED = re.compile(r"Booting worker with pid: (\d+)|(?:S|s|Res)pawned uWSGI worker \d+ \((?:new )?pid: (\d+)")
_SERVES = re.compile(r"process (\d+) serves")
_WITHOUT_AN_ANSWER = ("RemoteDisconnected", "ConnectionResetError", "ConnectionRefusedError", "BrokenPipeError")


@dataclass(frozen=True)
class Setup:
    """A server, and what happens to it under load."""

    server: Literal["gunicorn", "uWSGI"]
    options: tuple[str, ...]
    act: Act
    """Returns when it has happened. Raises TimeoutError."""
    preloaded: bool = True
    """Whether one process imports the application, before it forks the workers."""
    path: str = "/echo?token={token}"
    """What the load asks for."""
    adopted: bool = False
    """Whether another master takes over."""
    workers: int = 2
    """How many there are at the beginning."""


@dataclass
class Running:
    """A server at work."""

    server: Server
    load: LoadGenerator
    patience: float
    """Seconds for it to do what is asked of it."""

    def spawned(self) -> list[int]:
        """All workers that there ever were, in order."""
        return [int(one or other) for one, other in _SPAWNED.findall(self.server.child.output())]

    def serving(self) -> set[int]:
        """All workers that ever had a request."""
        return {int(pid) for pid in _SERVES.findall(self.server.child.output())}

    def wait(self, condition: Callable[[], object], what: str) -> None:
        def met() -> object:
            if not self.server.child.running:
                raise RuntimeError(f"{self.server!r}:\n{self.server.child.output(last=20)}")
            return condition()

        wait_until(met, timeout=self.patience, what=f"{what} of {self.server!r}", interval=0.02)

    def replaced(self, old: list[int], number: int) -> None:
        """Wait until `old` workers are gone, and so many were spawned since."""
        self.wait(lambda: len(set(self.spawned()) - set(old)) >= number and all(map(gone, old)), "new workers")

    def answered(self, number: int) -> None:
        """Wait for so many more answers of any kind."""
        before = self.load.result.requests
        self.wait(lambda: self.load.result.requests >= before + number, f"{number} answers")

    def command(self, letter: str) -> None:
        """Through uWSGI's master FIFO."""
        with open(self.server.child.log.with_name("fifo"), "w") as fifo:
            fifo.write(letter)

    def interrupted(self, seconds: float) -> None:
        """Ask for what takes so long, of a server that gives nobody that much time.

        Raises AssertionError when it was given.
        """
        parts = urlsplit(self.server.url)
        assert parts.hostname is not None
        connection = HTTPConnection(parts.hostname, parts.port, timeout=seconds + TIMEOUT)
        try:
            connection.request("GET", f"/slow?token=slow&seconds={seconds}")
            with connection.getresponse() as response:
                # gunicorn's, when the driver let the worker hear the signal.
                if response.status < 500:
                    raise AssertionError(f"{response.status} {response.read()!r} from {self.server!r}")
        except (http.client.RemoteDisconnected, ConnectionResetError):
            pass
        finally:
            connection.close()


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    load: LoadResult
    unfinished: str
    """Why it did not come to the end of what was to happen; empty when it did."""
    recycled: int
    """Workers that were spawned after the first ones."""
    astray: dict[int, set[int]]
    """Backends that not exactly one process of the server held when it was quiet again, and which processes did."""
    kept: bool
    """Whether the transaction left open at import was still open at the end, in the same backend."""
    committed: int
    """How many of their rows others could see."""
    left: int
    """Backends that were there when the server had ended."""

    @property
    def dropped(self) -> int:
        """Requests whose connection the server closed without an answer."""
        return sum(self.load.statuses.get(name, 0) for name in _WITHOUT_AN_ANSWER)

    @property
    def failed(self) -> int:
        """Requests that failed otherwise: an answer that says so, or none in time."""
        return self.load.failed - self.dropped

    @property
    def clean(self) -> bool:
        """Whether everything is as it should be, but for `dropped`, which is the server's."""
        counts = self.load.wrong + self.failed + self.committed + self.left + len(self.astray)
        return not counts and not self.unfinished and self.kept


def recycle(
    setup: Setup,
    database: Database,
    *,
    guarded: bool,
    directory: Path,
    opening: bool = True,
    patience: float = 120.0,
) -> Outcome:
    """Start the server, load it, have `setup.act` happen to it, and look at the database from outside.

    opening: whether the import opens connections where the application is preloaded. directory: for the server's log.
    patience: seconds for each step of `setup.act`; unguarded servers may never get there. Nobody else may open
    connections to `database` at the same time.

    Raises RuntimeError or TimeoutError when the server does not start.
    """
    run = uuid4().hex[:8]
    database.query("create table if not exists imported (run varchar(100))")
    before = set(_ends(database))
    opens = setup.preloaded and opening
    with _start(setup, database, run if opens else "", guarded=guarded, directory=directory) as server:
        load = LoadGenerator(server.ready() + setup.path, threads=4, timeout=min(TIMEOUT, patience))
        running = Running(server, load, patience)
        running.wait(lambda: len(running.spawned()) >= setup.workers, "workers")
        opened = set(_transactions(database)) - before
        unfinished = ""
        load.start()
        try:
            # A worker that is told to end before it has begun may not hear it.
            running.wait(lambda: len(running.serving()) >= setup.workers, "all workers")
            setup.act(running)
            running.answered(SOME)
        except (AssertionError, RuntimeError, TimeoutError) as error:
            unfinished = str(error)
        finally:
            load.stop()
        spawned = len(running.spawned()) - setup.workers
        astray = _astray(database, server, before, patience)
        still_open = set(_transactions(database)) - before
        # Another master has imported the application for itself.
        kept = len(still_open) == len(opened) if setup.adopted else still_open == opened
        [(committed,)] = database.query("select count(*) from imported where run = %s", run)
    left = _left(database, before)
    return Outcome(load.result, unfinished, spawned, astray, kept and len(opened) == opens, committed, left)


def _start(setup: Setup, database: Database, run: str, *, guarded: bool, directory: Path) -> Server:
    app = "trials:guarded()" if guarded else "trials:unguarded()"
    if isinstance(database, PostgreSQL):
        # Its client was killed, and the query goes on: without this the server looks only when it has the result.
        url = database.url("psycopg2", options="-c client_connection_check_interval=500")
    else:
        url = database.url("pymysql")
    variables: dict[str, Any] = {"DATABASE_URL": url}
    if run:
        variables |= {"ECHO_CONNECTIONS": "1", "ECHO_TRANSACTION": run}
    if setup.server == "uWSGI":
        return uwsgi(app, *setup.options, guarded=guarded, directory=directory, path=[APPS], **variables)
    # With SIGUSR2 gunicorn runs its __main__.py as a script; the standard library's http is not to be gunicorn's then.
    variables["PYTHONSAFEPATH"] = "1"
    return gunicorn(
        app, *setup.options, guarded=guarded, directory=directory, path=[APPS], adopted=setup.adopted, **variables
    )


def _ends(database: Database) -> dict[int, int]:
    """The client's port of each backend but the admin's."""
    if isinstance(database, PostgreSQL):
        return dict(database.query("select pid, client_port from pg_stat_activity where client_port > 0"))
    sql = "select id, host from information_schema.processlist where host like '127.0.0.1:%'"
    return {number: int(host.rpartition(":")[2]) for number, host in database.query(sql)}


def _transactions(database: Database) -> list[int]:
    """Backends in a transaction that wrote."""
    if isinstance(database, PostgreSQL):
        sql = "select pid from pg_stat_activity where state = 'idle in transaction' and backend_xid is not null"
    else:
        sql = "select trx_mysql_thread_id from information_schema.innodb_trx where trx_rows_modified > 0"
    return [number for (number,) in database.query(sql)]


def _astray(database: Database, server: Server, before: set[int], patience: float) -> dict[int, set[int]]:
    """Backends that not exactly one process of the server holds, as soon as there are none, or after some time."""
    found: dict[int, set[int]] = {}

    def look() -> bool:
        ends = {backend: port for backend, port in _ends(database).items() if backend not in before}
        held = holders(ends.values(), server.processes, to=database.port)
        found.clear()
        found.update({backend: held[port] for backend, port in ends.items() if len(held[port]) != 1})
        return not found

    with suppress(TimeoutError):
        wait_until(look, timeout=min(patience, 30.0), what="backends with one holder", interval=0.05)
    return found


def _left(database: Database, before: set[int]) -> int:
    """How many backends there are more than before, as soon as there are none, or after some time."""

    def none() -> bool:
        return not set(_ends(database)) - before

    with suppress(TimeoutError):
        wait_until(none, timeout=30.0, what="the end of all backends", interval=0.05)
    return len(set(_ends(database)) - before)
