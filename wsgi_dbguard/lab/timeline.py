"""The same bad minute for everything that keeps pooled connections alive: what becomes of each request, and when.

Every contender is a real gunicorn (gthread, two workers with four threads each) with a pool of its own (apps/pools.py),
reached at the same time by the same load: pages (GET, they read) and orders (POST, each inserts a row). All of them use
one PostgreSQL, each by a network of its own. In turn: their backends are killed, again and again; the server restarts;
is killed with SIGKILL; is stopped (SIGSTOP) for five seconds; the network swallows everything and then forgets its
connections; and the primary is demoted, goes on as a read-only server, and its name leads to the one that was promoted.

Example::

    with tempfile.TemporaryDirectory() as directory:
        timeline = record(seconds=60.0, directory=Path(directory), tell=print)
    print(timeline.track("guard").failed("GET"))

What it is not: a measure of speed. The load is light, so that what is seen is the fault.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .load import Answer, LoadGenerator
from .postgres import PostgreSQL
from .proxy import FaultProxy
from .replication import PostgreSQLPair
from .servers import APPS, Server, gunicorn

__all__ = ["HOLD", "PAGES", "Span", "Timeline", "Track", "contenders", "record"]

DRIVER = "psycopg"  # the one that every contender has
SERVER = ("--worker-class=gthread", "--workers=2", "--threads=4", "--graceful-timeout=2")
HOLD = 10.0  # seconds that the guard's requests may wait
PAGES, ORDERS = 25.0, 5.0  # requests per second to each contender
TIMEOUT = 15.0  # seconds a client waits; whoever holds requests must be done before
CLIENTS = 6.0  # seconds of requests that can be under way at once
MINUTE = 60.0

Method = Literal["GET", "POST"]


@dataclass
class Span:
    """A fault, in seconds since the beginning."""

    name: str
    begun: float
    ended: float


@dataclass
class Track:
    """What came of one contender's requests, in seconds since the beginning."""

    contender: str
    answers: dict[Method, list[Answer]] = field(default_factory=lambda: {"GET": [], "POST": []})
    opened: list[float] = field(default_factory=list)
    """When it opened a connection, or tried to; without those before the beginning."""
    lost: int = 0
    """Orders that were answered as if done and are in neither database."""
    twice: int = 0
    """Orders that are in a database more than once."""

    def failed(self, method: Method) -> int:
        return sum(answer.kind == "failed" for answer in self.answers[method])

    @property
    def wrong(self) -> int:
        return sum(answer.kind == "wrong" for answers in self.answers.values() for answer in answers)

    @property
    def slowest(self) -> float:
        return max((answer.took for answers in self.answers.values() for answer in answers), default=0.0)


@dataclass
class Timeline:
    """The whole minute, which may have been a shorter one."""

    seconds: float
    faults: list[Span]
    tracks: list[Track]
    version: str

    def track(self, contender: str) -> Track:
        """Raises KeyError."""
        return {track.contender: track for track in self.tracks}[contender]

    def fault_at(self, second: float) -> Span | None:
        """The last fault that had begun then."""
        return max((span for span in self.faults if span.begun <= second), key=lambda span: span.begun, default=None)


def contenders() -> tuple[str, ...]:
    """Their names, as apps/pools.py has them."""
    if str(APPS) not in sys.path:
        sys.path.append(str(APPS))
    from pools import CONTENDERS

    return CONTENDERS


def record(
    *,
    seconds: float = MINUTE,
    directory: Path,
    names: tuple[str, ...] | None = None,
    tell: Callable[[str], object] = lambda step: None,
) -> Timeline:
    """Play the minute in `seconds` seconds; faults are as much shorter. `directory`: for logs; `tell`: hears each step.

    Raises ServerMissing without PostgreSQL, RuntimeError or TimeoutError when a server does not start.
    """
    tell("starting PostgreSQL and its replica")
    with ExitStack() as stack:
        stage = _Stage(stack, seconds, tell)
        tell("starting a gunicorn for each contender")
        # At the end the servers stop first, all at once: requests that hang end with them, also after an interrupt.
        loads = stack.enter_context(ExitStack())
        stage.serve(stack, names or contenders(), directory)
        stack.callback(stage.give_up)
        stage.load(loads)
        stage.play()
        tell("waiting for the last answers")
        stage.finish()
        return Timeline(seconds, stage.faults, list(stage.tracks.values()), stage.pair.primary.version)


class _Stage:
    """What runs: the databases, a network and a server for each contender, and the load."""

    def __init__(self, stack: ExitStack, seconds: float, tell: Callable[[str], object]) -> None:
        self.seconds = seconds
        self.faults: list[Span] = []
        self.tracks: dict[str, Track] = {}
        self.pair = stack.enter_context(PostgreSQLPair(max_connections="400"))
        self.pair.primary.query("create table written (token text)")
        self._tell = tell
        self._networks: dict[str, FaultProxy] = {}
        self._servers: dict[str, Server] = {}
        self._loads: list[LoadGenerator] = []
        self._begun = 0.0

    def serve(self, stack: ExitStack, names: tuple[str, ...], directory: Path) -> None:
        for name in names:
            network = self._networks[name] = FaultProxy(self.pair.primary.host, self.pair.primary.port)
            stack.enter_context(network)
            server = gunicorn(
                "echo:contender()",
                *SERVER,
                guarded=name == "guard",
                directory=directory,
                path=[APPS],
                ECHO_POOL=name,
                DATABASE_URL=self.pair.primary.url_through(network.host, network.port, DRIVER),
                WSGI_DBGUARD_HOLD=str(HOLD),
            )
            self._servers[name] = stack.enter_context(server)
        for server in self._servers.values():
            server.ready("/echo?token=first")

    def give_up(self) -> None:
        """Tell all servers to end, and whoever waits on the network that there is none."""
        for server in self._servers.values():
            server.child.send(signal.SIGTERM)
        for network in self._networks.values():
            network.reset()
            network.refuse()

    def load(self, stack: ExitStack) -> None:
        """Start all the load; the minute begins when that is done."""
        for name, server in self._servers.items():
            track = self.tracks[name] = Track(name)
            method: Method
            for method, path, rate in (("GET", "echo", PAGES), ("POST", "write", ORDERS)):
                load = LoadGenerator(
                    f"{server.url}/{path}?token={{token}}",
                    method=method,
                    rate=rate,
                    threads=int(CLIENTS * rate),
                    timeout=TIMEOUT,
                    observe=track.answers[method].append,
                )
                stack.callback(load.stop)
                load.start()
                self._loads.append(load)
        self._begun = time.monotonic()

    def play(self) -> None:
        """The minute. The times are those of a minute of 60 seconds."""
        primary = self.pair.primary
        with self._fault(5, "backends killed"):
            for second in (5, 6, 7, 8, 9):
                self._until(second)
                primary.terminate(*primary.backends())
        with self._fault(13, "restart"):
            primary.stop()
            self._until(15)
            primary.start()
        with self._fault(21, "SIGKILL"):
            primary.kill()
            self._until(23)
            primary.start()
        with self._fault(29, "stopped"):
            primary.pause()
            self._until(34)
            primary.resume()
        with self._fault(39, "blackhole"):
            for network in self._networks.values():
                network.blackhole()
            self._until(43)
            for network in self._networks.values():
                network.reset()
                network.up()
        with self._fault(49, "demotion"):
            self._fail_over(primary)
        self._until(MINUTE)

    def _fail_over(self, primary: PostgreSQL) -> None:
        primary.query("alter system set default_transaction_read_only = on")
        primary.query("select pg_reload_conf()")
        self.pair.caught_up()
        self.pair.replica.promote()
        for network in self._networks.values():
            network.redirect(self.pair.replica.host, self.pair.replica.port)

    @contextmanager
    def _fault(self, second: float, name: str) -> Iterator[None]:
        self._until(second)
        self._tell(name)
        span = Span(name, self._now(), self.seconds)
        self.faults.append(span)
        yield
        span.ended = self._now()

    def _now(self) -> float:
        return time.monotonic() - self._begun

    def _until(self, second: float) -> None:
        """Wait for that second of the minute."""
        time.sleep(max(0.0, second * self.seconds / MINUTE - self._now()))

    def finish(self) -> None:
        """Wait for what is under way, and count what became of it."""
        for load in self._loads:
            load.stop()
        stored: dict[str, int] = {}
        # In both: what was committed in the very moment of the failover may be in the old primary alone, and that is
        # nobody's fault here.
        for server in (self.pair.primary, self.pair.replica):
            for token, number in server.query("select token, count(*) from written group by 1"):
                stored[token] = max(number, stored.get(token, 0))
        for name, track in self.tracks.items():
            orders = track.answers["POST"]
            track.lost = sum(order.kind == "ok" and order.token not in stored for order in orders)
            track.twice = sum(stored.get(order.token, 0) > 1 for order in orders)
            track.opened = self._within(each.opened - self._begun for each in self._networks[name].history)
            for method, answers in track.answers.items():
                moved = (replace(answer, sent=answer.sent - self._begun) for answer in answers)
                inside = (answer for answer in moved if 0 <= answer.sent < self.seconds)
                track.answers[method] = sorted(inside, key=lambda answer: answer.sent)

    def _within(self, moments: Iterable[float]) -> list[float]:
        return [moment for moment in moments if 0 <= moment < self.seconds]
