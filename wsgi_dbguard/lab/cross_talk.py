"""Do workers answer with each other's data, when the application opened connections before the server forked them?

The application (lab/apps/echo.py) opens a pooled connection at import and leaves a transaction open there. Then each
request must get its own token back, the transaction of the import must stay open with its row uncommitted, and nothing
may be left in the database when the server has ended. Used by tests/servers/; the demo shows a smaller part of it.

Example::

    with PostgreSQL() as postgres:
        outcome = cross_talk(SETUPS[0], guarded=True, requests=1000, postgres=postgres, directory=directory)
    assert outcome.load.wrong == 0
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from .load import LoadGenerator, LoadResult
from .postgres import PostgreSQL
from .process import wait_until
from .servers import APPS, Server, gunicorn, uwsgi

__all__ = ["SETUPS", "Outcome", "Setup", "cross_talk"]

PATIENCE = 60.0  # seconds a client waits for a server that answers, however busy the machine
HUNG = 2.0  # seconds a client waits for workers that read from one connection, and may wait for each other for ever
GUNICORN = ("--workers=2", "--graceful-timeout=2")
UWSGI = ("--master", "--processes=2", "--threads=2")


@dataclass(frozen=True)
class Setup:
    """A server and the way it forks."""

    name: str
    options: tuple[str, ...]
    imports: int
    """How many processes import the application: 1 is the master, before it forks; 2 are the workers."""

    @property
    def shares(self) -> bool:
        """Whether the workers inherit what the import opened."""
        return self.imports == 1


SETUPS = (
    Setup("gunicorn sync", ("--worker-class=sync", "--preload", *GUNICORN), imports=1),
    Setup("gunicorn gthread", ("--worker-class=gthread", "--threads=2", "--preload", *GUNICORN), imports=1),
    Setup("gunicorn gevent", ("--worker-class=gevent", "--preload", *GUNICORN), imports=1),
    Setup("uWSGI prefork", UWSGI, imports=1),
    Setup("uWSGI lazy-apps", (*UWSGI, "--lazy-apps"), imports=2),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    setup: Setup
    guarded: bool
    load: LoadResult
    kept: bool
    """Whether the transactions left open at import were still open at the end, in the same backends."""
    committed: int
    """How many of their rows others could see."""
    left: int
    """Backends that were there when the server had ended."""

    @property
    def clean(self) -> bool:
        return self.kept and not (self.load.failed or self.load.wrong or self.committed or self.left)


def cross_talk(
    setup: Setup,
    *,
    guarded: bool,
    requests: int,
    postgres: PostgreSQL,
    directory: Path,
    seconds: float | None = None,
    once: bool = False,
) -> Outcome:
    """Start the server, send `requests`, for at most `seconds` seconds, and look at the database from outside.

    once: the first request that fails or is answered wrongly is the last. directory: for the server's log.

    Raises RuntimeError or TimeoutError when the server does not start.
    """
    run = f"cross-talk-{uuid4().hex[:8]}"  # tells this run's backends and rows from others'
    postgres.query("create table if not exists imported (run text)")
    start = uwsgi if setup.name.startswith("uWSGI") else gunicorn
    with start(
        "echo:guarded()" if guarded else "echo:unguarded()",
        *setup.options,
        guarded=guarded,
        directory=directory,
        path=[APPS],
        DATABASE_URL=postgres.url("psycopg2", application_name=run),
        ECHO_CONNECTIONS="1",
        ECHO_TRANSACTION=run,
    ) as server:
        opened = _imported(server, setup, run, postgres)
        url = f"{server.ready()}/echo?token={{token}}"
        timeout = HUNG if setup.shares and not guarded else PATIENCE
        load = _loaded(LoadGenerator(url, requests=requests, seconds=seconds, timeout=timeout), once=once)
        still_open = _open_transactions(run, postgres)
        [(committed,)] = postgres.query("select count(*) from imported where run = %s", run)
    return Outcome(setup, guarded, load, still_open == opened, committed, left=_left(run, postgres))


def _loaded(load: LoadGenerator, *, once: bool) -> LoadResult:
    if not once:
        return load.run()
    load.start()
    try:
        wait_until(
            lambda: load.result.failed or load.result.wrong or load.ended,
            timeout=2 * PATIENCE,
            what="the load",
            interval=0.02,
        )
    finally:
        load.stop()
    return load.result


def _imported(server: Server, setup: Setup, run: str, postgres: PostgreSQL) -> list[int]:
    """The backends of the transactions left open at import, once the import is done."""

    def opened() -> list[int]:
        if not server.child.running:
            raise RuntimeError(f"{server!r}:\n{server.child.output(last=20)}")
        found = _open_transactions(run, postgres)
        return found if len(found) == setup.imports else []

    return wait_until(opened, timeout=60.0, what=f"the import in {server!r}", interval=0.05)


def _open_transactions(run: str, postgres: PostgreSQL) -> list[int]:
    """Backends in a transaction that wrote: those have a transaction id."""
    rows = postgres.query(
        "select pid from pg_stat_activity where application_name = %s and state = 'idle in transaction'"
        " and backend_xid is not null order by pid",
        run,
    )
    return [pid for (pid,) in rows]


def _left(run: str, postgres: PostgreSQL) -> int:
    """How many backends of `run` there are, as soon as there are none, or after 30 seconds."""

    def backends() -> int:
        [(count,)] = postgres.query("select count(*) from pg_stat_activity where application_name = %s", run)
        return int(count)

    try:
        wait_until(lambda: not backends(), timeout=30.0, what=f"the backends of {run}", interval=0.05)
    except TimeoutError:
        return backends()
    return 0
