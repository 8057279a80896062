"""What `wsgi-dbguard demo` shows: the same application unguarded beside guarded, under load, while things break.

Both sides are real gunicorns (gthread, two workers with four threads each) with pools of their own on one private
PostgreSQL. They differ in the guard alone: `DBGuard` around the application and the hook line in gunicorn.conf.py. Each
request must get its own token back, by way of the database.

- idle backends terminated: bursts of requests, and in the lull after each every idle backend is terminated. In the
  lull, so that what is shown is the check at checkout alone, and not the second chance of a request.
- database restarts: bursts again, and between them the database restarts while requests come in one after the other.
  Those that meet it while it is down are counted apart from those of the burst after: the guarded ones wait.
- preloaded master: the application made queries at import, in the master (``--preload``), so that both workers
  inherited its pooled connections.

Example::

    with Demo(site=deploy_directory(), seconds=30.0) as demo:
        demo.run(print)
    assert demo.scenarios[0].guarded.failed == 0
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .load import LoadGenerator, LoadResult
from .postgres import PostgreSQL
from .process import keep, remove_at_death, wait_until
from .servers import APPS, Server, gunicorn

__all__ = ["Demo", "Scenario", "Side", "both"]

Tell = Callable[[str], object]

SERVER = ("--worker-class=gthread", "--workers=2", "--threads=4", "--graceful-timeout=2")
TIMEOUT = 5.0  # seconds a client waits; two workers that read from one connection can wait for each other for ever
RATE = 200.0  # requests per second on each side in a burst: both sides, the database and the load share few cores
BURST = 0.5  # seconds
TRICKLE = 10.0  # requests per second on each side while the database restarts

# When these scenarios end, as a part of the whole time.
TERMINATE_UNTIL = 0.35
RESTART_UNTIL = 0.6
STOPPING = TIMEOUT + 2.0  # seconds at the end for requests that hang, and for the worker that serves them


@dataclass
class Side:
    """What came of all requests to one of the two servers; grows while they run."""

    runs: list[LoadResult] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return sum(run.requests for run in self.runs)

    @property
    def failed(self) -> int:
        return sum(run.failed for run in self.runs)

    @property
    def wrong(self) -> int:
        return sum(run.wrong for run in self.runs)

    @property
    def slowest(self) -> float:
        return max((run.slowest for run in self.runs), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "failed": self.failed,
            "wrong": self.wrong,
            "slowest": round(self.slowest, 3),
        }


@dataclass
class Scenario:
    """One line of the demo's table."""

    name: str
    unguarded: Side = field(default_factory=Side)
    guarded: Side = field(default_factory=Side)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.unguarded, self.guarded

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "unguarded": self.unguarded.as_dict(), "guarded": self.guarded.as_dict()}


class Demo:
    """The demo and all that it starts; leaving its `with` block stops and removes everything.

    site: the directory of the example application (deploy/). seconds: about how long everything takes, from here to the
    end; each scenario gets one round in any case, however slow the machine.

    Raises ServerMissing when there is no PostgreSQL to run.
    """

    def __init__(self, *, site: Path, seconds: float) -> None:
        self.begun = time.monotonic()
        self.seconds = seconds
        self.terminated = Scenario("idle backends terminated")
        self.restarting = Scenario("database restarts: while it is down")
        self.restarted = Scenario("database restarts: once it is back")
        self.preloaded = Scenario("preloaded master")
        self._site = site
        self._stack = ExitStack()
        self.postgres = PostgreSQL()
        self._stack.callback(self.postgres.close)
        self._directory = Path(tempfile.mkdtemp(prefix="dbguard-demo-"))
        remove_at_death(self._directory)
        self._stack.callback(self._remove)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _remove(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        keep(self._directory)

    @property
    def scenarios(self) -> list[Scenario]:
        """In the order in which they run."""
        return [self.terminated, self.restarting, self.restarted, self.preloaded]

    def run(self, tell: Tell) -> None:
        """Run everything; `tell` is called with a line for each step, as it begins or ends.

        Raises RuntimeError or TimeoutError when a server does not start.
        """
        tell(f"starting PostgreSQL {self.postgres.version}")
        self.postgres.start()
        tell("starting the example application twice, unguarded and guarded")
        with ExitStack() as stack:
            urls = self._serve(stack, "app:create_app()", "wsgi:application")
            both(urls, Scenario("warm-up"), rate=RATE, during=BURST)
            self._terminate(urls, tell)
            self._restart(urls, tell)
        tell("starting both anew, preloaded: the master queries, then forks")
        with ExitStack() as stack:
            urls = self._serve(stack, "preloaded:unguarded()", "preloaded:guarded()", "--preload")
            tell("loading the preloaded workers")
            both(urls, self.preloaded, rate=None, during=max(1.0, self._before(self.seconds - STOPPING)))
            tell("stopping everything")

    def _serve(self, stack: ExitStack, unguarded: str, guarded: str, *options: str) -> tuple[str, str]:
        """Start both servers, and return their URLs once they serve."""
        servers: list[Server] = []
        for app in (unguarded, guarded):
            server = gunicorn(
                app,
                *SERVER,
                *options,
                guarded=app is guarded,
                directory=self._directory,
                path=[APPS, self._site],
                config=self._site / "gunicorn.conf.py",
                DATABASE_URL=self.postgres.url("psycopg2"),
            )
            servers.append(stack.enter_context(server))
        first, second = (server.ready() for server in servers)
        return first, second

    def _before(self, end: float) -> float:
        """Seconds left until `end` seconds after the beginning."""
        return self.begun + end - time.monotonic()

    def _terminate(self, urls: tuple[str, str], tell: Tell) -> None:
        tell("terminating every idle backend, again and again, between bursts")
        rounds = killed = 0
        while not rounds or self._before(TERMINATE_UNTIL * self.seconds) > 0:
            wait_until(self._quiet, timeout=10.0, what="the last transactions to end")
            killed += self.postgres.terminate()
            rounds += 1
            both(urls, self.terminated, rate=RATE, during=BURST)
        tell(f"terminated {killed} backends in {rounds} lulls")

    def _restart(self, urls: tuple[str, str], tell: Tell) -> None:
        tell("restarting the database, again and again, while requests come in")
        rounds = 0
        while not rounds or self._before(RESTART_UNTIL * self.seconds) > 0:
            both(urls, self.restarting, rate=TRICKLE, during=self.postgres.restart)
            rounds += 1
            both(urls, self.restarted, rate=RATE, during=BURST)
        tell(f"restarted the database {rounds} times")

    def _quiet(self) -> bool:
        """Whether every backend is idle, outside a transaction."""
        busy = "select count(*) from pg_stat_activity where state <> 'idle' and pid <> pg_backend_pid()"
        return self.postgres.query(busy) == [(0,)]


def both(
    urls: tuple[str, str], scenario: Scenario, *, rate: float | None, during: float | Callable[[], object]
) -> None:
    """Load both servers at the same time, and count it in `scenario`.

    rate: requests per second on each side, None: as fast as they are answered. during: for so many seconds, or for as
    long as this function takes.
    """
    with ExitStack() as stack:
        # Stopped in reverse, the guarded side first: requests that hang on the other do not prolong its load.
        for url, side in zip(urls, scenario.sides, strict=True):
            load = LoadGenerator(f"{url}/echo?token={{token}}", rate=rate, timeout=TIMEOUT)
            side.runs.append(load.result)
            stack.callback(load.stop)
            load.start()
        if callable(during):
            during()
        else:
            time.sleep(during)
