"""Do clients read what they wrote? Pairs of a write and a read over two servers that share nothing but a secret.

Each client has a counter of its own: it adds one on one server, and asks the other one for the sum. An answer below the
sum is a stale read. Meanwhile the replica's replay is paused and resumed at random moments.

Example::

    with PostgreSQLPair() as pair:
        print(own_writes(pair, directory, pairs=1000))
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .replication import MariaDBPair, Pair
from .servers import APPS, Server, gunicorn

__all__ = ["Outcome", "own_writes"]

_TABLE = "create table counters (name varchar(20) primary key, number int not null)"


@dataclass
class Outcome:
    """What came of the pairs. `replicas` and `primary`: reads that each served, the latter by reason."""

    pairs: int = 0
    stale: int = 0
    failed: int = 0  # requests whose status was not 200
    replica: int = 0
    primary: Counter[str] = field(default_factory=Counter)
    waited: int = 0  # reads for which the replica had to catch up first
    pauses: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        reasons = ", ".join(f"{number} {why}" for why, number in sorted(self.primary.items()) if why != "unsafe")
        return (
            f"{self.pairs} pairs in {self.seconds:.1f} s, {self.pauses} pauses of replay: {self.stale} stale, "
            f"{self.failed} failed; reads by the replica {self.replica} ({self.waited} after a wait), "
            f"by the primary: {reasons or 'none'}"
        )


class _Client:
    """One browser, with a connection to each server. `remembers`: it sends its cookie back."""

    def __init__(self, name: str, servers: list[Server], *, remembers: bool) -> None:
        self._name = name
        self._remembers = remembers
        self._cookie = ""
        self._connections = [_connect(server) for server in servers]

    def ask(self, server: int, method: str) -> tuple[int, str]:
        connection = self._connections[server]
        connection.request(method, f"/{self._name}", headers={"Cookie": self._cookie} if self._cookie else {})
        answer = connection.getresponse()
        body = answer.read().decode()
        told = answer.getheader("Set-Cookie")
        if told and self._remembers:
            self._cookie = told.partition(";")[0]
        return answer.status, body

    def close(self) -> None:
        for each in self._connections:
            each.close()


def _connect(server: Server) -> http.client.HTTPConnection:
    address = urlsplit(server.url)
    return http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)


def own_writes(
    pair: Pair,
    directory: Path,
    *,
    pairs: int,
    clients: int = 4,
    remembers: bool = True,
    isolation: str = "READ COMMITTED",
    longest: float = 0.4,
) -> Outcome:
    """So many pairs of a write and a read, by so many clients at once; `remembers`: they send their cookies back.

    Replay is paused, and let go, for up to `longest` seconds at a time. The servers' logs are in `directory`.
    """
    driver = "pymysql" if isinstance(pair, MariaDBPair) else "psycopg2"
    pair.primary.query("drop table if exists counters")
    pair.primary.query(_TABLE)
    pair.caught_up()
    outcome = Outcome()
    lock = threading.Lock()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                gunicorn(
                    "counters:application",
                    "--worker-class=gthread",
                    f"--threads={clients + 1}",
                    guarded=True,
                    directory=directory,
                    path=[APPS],
                    SQLALCHEMY_PRIMARY=pair.primary.url_through(pair.primary.host, pair.primary.port, driver),
                    SQLALCHEMY_REPLICA=pair.replica.url_through(pair.replica.host, pair.replica.port, driver),
                    SECRET="only this is shared",
                    ISOLATION=isolation,
                )
            )
            for _ in range(2)
        ]
        for server in servers:
            server.ready()

        def work(number: int) -> None:
            client = _Client(f"client{number}", servers, remembers=remembers)
            chance = random.Random(number)
            try:
                for wanted in range(1, pairs // clients + 1):
                    first = chance.randrange(2)
                    written, _ = client.ask(first, "POST")
                    read, body = client.ask(1 - first, "GET")
                    with lock:
                        outcome.pairs += 1
                        outcome.failed += (written != 200) + (read != 200)
                        outcome.stale += read == 200 and int(body) < wanted
            finally:
                client.close()

        done = threading.Event()
        pausing = threading.Thread(target=_pause_and_resume, args=(pair, done, outcome, longest))
        began = time.monotonic()
        pausing.start()
        try:
            with ThreadPoolExecutor(clients) as executor:
                list(executor.map(work, range(clients)))
        finally:
            done.set()
            pausing.join()
        outcome.seconds = time.monotonic() - began
        for server in servers:
            _count(server, outcome)
    return outcome


def _pause_and_resume(pair: Pair, done: threading.Event, outcome: Outcome, longest: float) -> None:
    chance = random.Random(1)  # the first pause comes soon
    while not done.wait(chance.uniform(0.0, longest)):
        pair.pause_replay()
        outcome.pauses += 1
        done.wait(chance.uniform(0.0, longest))
        pair.resume_replay()


def _count(server: Server, outcome: Outcome) -> None:
    connection = _connect(server)
    try:
        connection.request("GET", "/stats")
        stats = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    outcome.replica += sum(each["requests"] for each in stats["replicas"].values())
    outcome.primary += Counter(stats["primary"])
    outcome.waited += stats["waited"]
