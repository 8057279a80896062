"""A database that restarts under load, again and again: what clients of gunicorn see, by what looks after the pool.

Each contender is a real gunicorn (gthread, two workers with four threads each) with pools of its own; all of them get
their requests at the same time, from the same database. A request is a token that goes to the database and comes back.

Example::

    with PostgreSQL() as database:
        results = restarts(database, "psycopg2", fast=5, kills=5, directory=directory)
    assert results[Contender.GUARD].failed == 0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from .contenders import Contender
from .load import LoadGenerator, LoadResult
from .mariadb import MariaDB
from .postgres import PostgreSQL
from .process import wait_until
from .servers import APPS, Server, gunicorn

__all__ = ["HOLD", "restarts", "serve"]

SERVER = ("--worker-class=gthread", "--workers=2", "--threads=4", "--graceful-timeout=2")
HOLD = 10.0  # seconds
CLIENTS = 64  # threads for each contender: while requests are held, others go on coming
LULL = 0.5  # seconds of load, at least, between one restart and the next


def restarts(
    database: PostgreSQL | MariaDB,
    driver: str,
    *,
    fast: int,
    kills: int,
    directory: Path,
    rate: float = 100.0,
    contenders: tuple[Contender, ...] = tuple(Contender),
) -> Mapping[Contender, LoadResult]:
    """Restart `database` `fast` times in order, then `kills` times with SIGKILL; `rate`: requests per second for each.

    Each outage is over for the requests that met it before the next one begins. Raises TimeoutError if a contender does
    not come back.
    """
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(each, database.url(driver), directory)) for each in contenders]
        loads = {}
        for contender, server in zip(contenders, servers, strict=True):
            url = f"{server.ready()}/echo?token={{token}}"
            loads[contender] = LoadGenerator(url, threads=CLIENTS, rate=rate, timeout=60.0)
        for load in loads.values():
            stack.callback(load.stop)
            load.start()
        for end in [database.stop] * fast + [database.kill] * kills:
            _all_well(loads, rate)
            before = {contender: load.result.failed for contender, load in loads.items()}
            end()
            _met(loads, before)
            database.start()
            for load in loads.values():
                # A request that lost its connection runs once more, and no third time: none is to meet two outages.
                load.catch_up()
        _all_well(loads, rate)
        return {contender: load.stop() for contender, load in loads.items()}


def serve(contender: Contender, url: str, directory: Path, **settings: str) -> Server:
    """A gunicorn with the lab's echo application; `settings` are environment variables. Wait with `Server.ready`."""
    guarded = contender is Contender.GUARD
    variables = {
        "DATABASE_URL": url,
        "ECHO_POOL": contender.value,
        "WSGI_DBGUARD_HOLD": f"{HOLD}",
        **settings,
    }
    return gunicorn(
        "echo:guarded()" if guarded else "echo:unguarded()",
        *SERVER,
        guarded=guarded,
        directory=directory,
        path=[APPS],
        config=None,
        adopted=False,
        **variables,
    )


def _met(loads: Mapping[Contender, LoadGenerator], before: Mapping[Contender, int]) -> None:
    """Wait until each contender without a guard has failed a request, so that the outage was one, however short."""
    for contender, load in loads.items():
        if contender is not Contender.GUARD:
            wait_until(_has_failed(load, before[contender]), timeout=60.0, what=f"{contender} to fail")


def _has_failed(load: LoadGenerator, before: int) -> Callable[[], bool]:
    return lambda: load.result.failed > before


def _all_well(loads: Mapping[Contender, LoadGenerator], rate: float) -> None:
    """Wait until each contender has answered as many requests as come in a lull, from now on."""
    for contender, load in loads.items():
        wait_until(_succeeds(load, int(LULL * rate)), timeout=60.0, what=f"answers of {contender}")


def _succeeds(load: LoadGenerator, count: int) -> Callable[[], bool]:
    goal = load.result.statuses.get("200", 0) + count
    return lambda: load.result.statuses.get("200", 0) >= goal
