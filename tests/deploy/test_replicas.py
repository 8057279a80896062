"""deploy/replicas: two hosts that share only the secret, PgBouncer and HAProxy before a primary and two replicas."""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.servers import gunicorn
from wsgi_dbguard.lab.topology import ServerMissing, Topology

pytestmark = pytest.mark.slow

PAIRS = 240
CLIENTS = 4
LONGEST = 60.0  # seconds to wait for anything


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    try:
        topology = Topology()
        with topology:
            yield topology
    except ServerMissing as missing:
        pytest.skip(str(missing))


class Client:
    """One browser, with a connection to each host."""

    def __init__(self, hosts: list[str]) -> None:
        self._connections = [http.client.HTTPConnection(urlsplit(url).netloc, timeout=LONGEST) for url in hosts]
        self._cookie = ""

    def ask(self, host: int, path: str, text: str = "", key: str = "") -> tuple[int, Any, str]:
        """Status, content, and whether it says to be a replay; with `text`: a POST of it."""
        headers = {"Cookie": self._cookie, "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        connection = self._connections[host]
        connection.request("POST" if text else "GET", path, json.dumps({"text": text}) if text else None, headers)
        answer = connection.getresponse()
        body = answer.read()
        cookie = answer.getheader("Set-Cookie")
        if cookie:
            self._cookie = cookie.partition(";")[0]
        is_json = "json" in answer.getheader("Content-Type", "")
        return answer.status, json.loads(body) if is_json else body, answer.getheader("Idempotent-Replayed", "")

    def close(self) -> None:
        for each in self._connections:
            each.close()


@pytest.fixture(scope="module")
def hosts(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The URLs of two gunicorns, each with a directory of its own."""
    files = deploy_directory()
    told: dict[str, Any] = {**topology.environment, "DBGUARD_SECRET": "only this is shared"}
    make = [sys.executable, "-c", "import wsgi; wsgi.create_tables()"]
    environment = {**os.environ, **told, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(make, cwd=files / "replicas", env=environment, check=True, timeout=LONGEST)
    topology.caught_up()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                gunicorn(
                    "wsgi:application",
                    guarded=True,
                    directory=tmp_path_factory.mktemp("host"),
                    path=[files / "replicas"],
                    config=files / "gunicorn.conf.py",
                    WEB_CONCURRENCY="1",
                    **told,
                )
            )
            for _ in range(2)
        ]
        yield [server.ready() for server in servers]


def served(hosts: list[str]) -> list[int]:
    """How many requests each replica has served."""
    counts = [0, 0]
    for host in range(len(hosts)):
        client = Client(hosts)
        for number, each in enumerate(client.ask(host, "/replicas")[1]["replicas"].values()):
            counts[number] += each["requests"]
        client.close()
    return counts


@contextmanager
def replay_paused_now_and_then(topology: Topology) -> Iterator[list[int]]:
    done = threading.Event()
    pauses: list[int] = []

    def work() -> None:
        chance = random.Random(1)
        while not done.wait(chance.uniform(0.0, 0.2)):
            topology.pause_replay()
            pauses.append(1)
            done.wait(chance.uniform(0.0, 0.2))
            topology.resume_replay()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield pauses
    finally:
        done.set()
        thread.join()
        topology.resume_replay()


def write_and_read(hosts: list[str], number: int) -> list[str]:
    """So many pairs of a write on one host and a read on the other; what went wrong."""
    client, chance, wrong = Client(hosts), random.Random(number), []
    for turn in range(PAIRS // CLIENTS):
        first = chance.randrange(2)
        status, note, _ = client.ask(first, "/notes", f"{number}-{turn}")
        if status != 201:
            wrong.append(f"write: {status} {note}")
            continue
        status, read, _ = client.ask(1 - first, f"/notes/{note['id']}")
        if (status, read) != (200, note):
            wrong.append(f"read: {status} {read}, not {note}")
    client.close()
    return wrong


def test_who_writes_on_one_host_reads_it_on_the_other(topology: Topology, hosts: list[str]) -> None:
    reader = Client(hosts)
    for host in range(2):

        def uses_replicas(host: int = host) -> bool:
            reader.ask(host, "/notes")
            return all(each["usable"] for each in reader.ask(host, "/replicas")[1]["replicas"].values())

        wait_until(uses_replicas, timeout=LONGEST, what="replicas that are in use")
    before = served(hosts)
    with replay_paused_now_and_then(topology) as pauses, ThreadPoolExecutor(CLIENTS) as clients:
        wrong = [each for found in clients.map(partial(write_and_read, hosts), range(CLIENTS)) for each in found]
    assert wrong == []
    assert len(pauses) > 0
    topology.caught_up()

    # While replay is paused, only who wrote it sees it: the others read from a replica.
    topology.pause_replay()
    _, note, _ = reader.ask(0, "/notes", "new")
    stranger = Client(hosts)

    def only_for_the_writer() -> bool:
        assert reader.ask(1, f"/notes/{note['id']}")[0] == 200
        return stranger.ask(1, f"/notes/{note['id']}")[0] == 404

    wait_until(only_for_the_writer, timeout=LONGEST, what="a read from a replica")
    topology.resume_replay()
    topology.caught_up()

    # Both replicas serve those who have written nothing.

    def both_have_served() -> bool:
        assert [stranger.ask(host, "/notes")[0] for host in range(2)] == [200, 200]
        return all(now > then for now, then in zip(served(hosts), before, strict=True))

    wait_until(both_have_served, timeout=LONGEST, what="both replicas to serve")

    # The key of one host is known on the other.
    status, note, replayed = reader.ask(0, "/notes", "said once", key="k1")
    assert (status, replayed) == (201, "")
    assert reader.ask(1, "/notes", "said once", key="k1") == (201, note, "true")
    assert stranger.ask(1, "/notes", "said twice", key="k1")[0] == 422
    for each in (reader, stranger):
        each.close()


def test_a_replica_that_goes_away_fails_no_request(topology: Topology, hosts: list[str]) -> None:
    away = topology.standbys[0]
    done, failed, answered = threading.Event(), [], []

    def load(number: int) -> None:
        client = Client(hosts)
        while not done.is_set():
            status, body, _ = client.ask(number % 2, "/notes")
            answered.append(status)
            if status != 200:
                failed.append((status, body))
        client.close()

    def more(count: int = 40) -> None:
        already = len(answered)
        wait_until(lambda: len(answered) >= already + count, timeout=LONGEST, what=f"{count} answers")

    with ThreadPoolExecutor(CLIENTS) as clients:
        loads = [clients.submit(load, number) for number in range(CLIENTS)]
        try:
            more()
            away.kill()
            more()
            away.start()
            more()
        finally:
            done.set()
        for each in loads:
            each.result()
    assert failed == []
    client, before = Client(hosts), served(hosts)

    def serves_again() -> bool:
        assert client.ask(0, "/notes")[0] == 200
        return served(hosts)[0] > before[0]

    wait_until(serves_again, timeout=LONGEST, what="the replica to serve again", interval=0.1)
    client.close()
