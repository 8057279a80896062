"""On real gunicorn and uWSGI, with a real PostgreSQL that stops and starts."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from wsgi_dbguard.lab.load import LoadGenerator
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.servers import APPS, Server, gunicorn, uwsgi

pytestmark = pytest.mark.slow

NAME = "healthy"
WORKERS = 2
GRACEFUL = "--hook-master-start=unix_signal:15 gracefully_kill_them_all"
SERVERS: dict[str, tuple[Callable[..., Server], tuple[str, ...]]] = {
    "gunicorn": (gunicorn, ("--worker-class=gthread", "--threads=4", f"--workers={WORKERS}")),
    "gunicorn preloaded": (gunicorn, ("--worker-class=gthread", "--threads=4", f"--workers={WORKERS}", "--preload")),
    "uWSGI": (uwsgi, ("--master", f"--processes={WORKERS}", "--threads=4", GRACEFUL)),
    "uWSGI lazy-apps": (uwsgi, ("--master", f"--processes={WORKERS}", "--threads=4", GRACEFUL, "--lazy-apps")),
}


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    try:
        server = PostgreSQL(settings={"log_statement": "all", "log_line_prefix": "%a "})
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, database: PostgreSQL, tmp_path: Path) -> Iterator[Server]:
    start, options = SERVERS[request.param]
    with start(
        "healthy:guarded()", *options, guarded=True, directory=tmp_path, path=[APPS],
        DATABASE_URL=database.url(application_name=NAME),
    ) as server:  # fmt: skip
        server.ready("/-/db/livez")
        yield server
    if not database.running:
        database.start()


def ask(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def page(server: Server) -> dict[str, Any]:
    status, text = ask(server.url + "/-/db/", Accept="application/json")
    assert status == 200
    document: dict[str, Any] = json.loads(text)
    return document


def readyz(server: Server) -> tuple[int, str]:
    return ask(server.url + "/-/db/readyz")


def statements(database: PostgreSQL) -> int:
    """How many statements the application has sent, by the server's log."""
    return len(re.findall(rf"^{NAME} LOG:  (?:statement|execute)", database.log.read_text(), re.MULTILINE))


def test_readyz_follows_the_database_the_page_shows_all_workers_and_200_a_second_are_one_query(
    server: Server, database: PostgreSQL
) -> None:
    # All workers, also those that nobody has asked anything yet, and no master.
    workers: set[int] = set()
    one = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)

    def both() -> bool:
        """By one kept connection: where the server keeps it, all is asked of one worker."""
        try:
            one.request("GET", "/-/db/", headers={"Accept": "application/json"})
            workers.update(each["pid"] for each in json.load(one.getresponse())["workers"])
        except ConnectionError:  # uWSGI keeps none; it may have closed this one before it was asked, or after
            one.close()
        return len(workers) == WORKERS

    wait_until(both, timeout=30, what="both workers")
    one.close()
    assert workers <= set(server.processes[1:])

    for _ in range(20):
        ask(server.url + "/echo?token=x")
    assert readyz(server) == (200, "ready\n")

    def settled() -> bool:
        """Each has asked its first questions: the load is counted from there."""
        readyz(server)
        return all(each["pools"][0]["connects"] for each in page(server)["workers"])

    wait_until(settled, timeout=30, what="a connection of each worker")
    began, before = monotonic(), statements(database)
    load = LoadGenerator(
        server.url + "/-/db/readyz?{token}", threads=8, rate=200, requests=600,
        expect=lambda token, status, body: (status, body) == (200, b"ready\n"),
    )  # fmt: skip
    result = load.run()
    assert (result.failed, result.wrong) == (0, 0), result.errors
    assert 0 < statements(database) - before <= WORKERS * (monotonic() - began + 1)

    database.stop()
    wait_until(lambda: readyz(server) == (503, "away\n"), timeout=30, what="503")
    assert ask(server.url + "/-/db/livez")[0] == 200
    wait_until(lambda: page(server)["state"] == "away", timeout=30, what="the page")
    database.start()

    def back() -> bool:
        document = page(server)
        told = any("the database is back" in each["what"] for each in document["events"])
        return readyz(server)[0] == 200 and told and document["state"] == "ready"

    wait_until(back, timeout=30, what="200, and the page that says so")

    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: len(new := {each["pid"] for each in page(server)["workers"]}) == WORKERS and not new & workers,
        timeout=60, what="other workers",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("server", "told"),
    # Who is still connected is told so; uWSGI's workers take no request from then on.
    [("gunicorn", {(503, "draining\n")}), ("uWSGI", {None})],
    indirect=["server"],
)
def test_it_drains_from_sigterm_on_while_a_slow_request_finishes(
    server: Server, told: set[tuple[int, str] | None], database: PostgreSQL
) -> None:
    kept = [kept_connection(server) for _ in range(8)]
    slow: list[tuple[int, str]] = []
    thread = threading.Thread(target=lambda: slow.append(ask(server.url + "/slow?token=done&seconds=3")))
    thread.start()
    wait_until(lambda: running(database), timeout=30, what="the slow query")
    server.child.send(signal.SIGTERM)
    with ThreadPoolExecutor(len(kept)) as asking:
        answers = list(asking.map(last_answer, kept))
    thread.join()
    assert [status for status, _ in slow] == [200]
    assert told <= set(answers) <= {*told, None}


def kept_connection(server: Server) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=2)
    connection.request("GET", "/-/db/readyz")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"ready\n")
    return connection


def last_answer(connection: http.client.HTTPConnection) -> tuple[int, str] | None:
    """What a balancer hears that asks on and on, when it is not 200 any more; None: nobody answers."""
    try:
        while True:
            connection.request("GET", "/-/db/readyz")
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                return answer.status, text
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def running(database: PostgreSQL) -> bool:
    slow = "select 1 from pg_stat_activity where application_name = %s and state = 'active' and query like '%%sleep%%'"
    return bool(database.query(slow, NAME))


def test_a_pool_whose_only_connection_is_in_use_is_not_waited_for(database: PostgreSQL, tmp_path: Path) -> None:
    with gunicorn(
        "healthy:guarded()", "--worker-class=gthread", "--threads=4", guarded=True, directory=tmp_path, path=[APPS],
        DATABASE_URL=database.url(application_name=NAME), HEALTHY_POOL="1",
    ) as server:  # fmt: skip
        server.ready("/-/db/livez")
        assert readyz(server) == (200, "ready\n")
        thread = threading.Thread(target=lambda: ask(server.url + "/slow?token=done&seconds=4"))
        thread.start()
        wait_until(lambda: running(database), timeout=30, what="the slow query")
        assert readyz(server) == (200, "ready\n")
        assert running(database)  # it was answered long before the connection came back
        thread.join()
