"""The example under both servers, each with the files of deploy/ as they are."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from wsgi_dbguard.lab.load import LoadGenerator, LoadResult
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import Child, descendants, gone, wait_until

Serve = Callable[..., tuple[Child, str]]

# Tells when a request has arrived, and answers it when told to: a request can be under way for as long as a test needs.
SLOW_APPLICATION = """
from pathlib import Path
from wsgi_dbguard.lab.process import wait_until

def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        Path("arrived").touch()
        wait_until(Path("answer").exists, timeout=120, what="the word to answer")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"done"]
"""


def requests(url: str, count: int = 200) -> LoadResult:
    return LoadGenerator(f"{url}/echo?token={{token}}", threads=8, requests=count).run()


def post(url: str, words: object) -> tuple[int, dict[str, object]]:
    body = json.dumps({"text": words}).encode()
    request = Request(f"{url}/notes", data=body, headers={"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return response.status, json.load(response)


def test_notes_are_created_and_listed(serve: Serve) -> None:
    _, url = serve()
    status, note = post(url, "written by a test")
    assert status == 201
    with urlopen(f"{url}/notes", timeout=60) as response:
        listed = json.load(response)
    assert note in listed["notes"]
    assert listed["total"] >= 1


def test_an_impossible_note_is_refused(gunicorn: Serve) -> None:
    _, url = gunicorn()
    for words in ("", 5, None, "x" * 1001):
        with pytest.raises(HTTPError, match="400"):
            post(url, words)


@pytest.mark.slow
def test_terminated_idle_connections_fail_no_request(serve: Serve, postgres: PostgreSQL) -> None:
    _, url = serve()
    warm = requests(url)
    assert (warm.failed, warm.wrong) == (0, 0), warm.errors
    wait_until(postgres.terminate, timeout=60, what="idle connections")
    after = requests(url)
    assert (after.requests, after.failed, after.wrong) == (200, 0, 0), after.errors
    for _ in range(5):
        postgres.terminate()
        assert post(url, "after a disconnect")[0] == 201


@pytest.mark.slow
def test_terminated_idle_connections_fail_requests_without_the_guard(
    serve: Serve, site: Path, postgres: PostgreSQL
) -> None:
    (site / "wsgi.py").write_text("from app import create_app\napplication = create_app()\n")
    _, url = serve()
    requests(url)
    # A worker gives a connection back when it has answered.
    wait_until(postgres.terminate, timeout=60, what="idle connections")
    assert requests(url).failed > 0


def test_a_database_that_is_away_does_not_stop_the_start(serve: Serve) -> None:
    serve(DATABASE_URL="postgresql+psycopg2://nobody@127.0.0.1:1/nothing")


@pytest.mark.slow
def test_sigterm_leaves_no_process_and_no_connection(serve: Serve, postgres: PostgreSQL) -> None:
    before = set(postgres.backends())
    server, url = serve()
    requests(url)
    assert set(postgres.backends()) - before
    workers = descendants(server.pid)
    assert len(workers) >= 2
    server.send(signal.SIGTERM)
    assert server.wait(timeout=120) == 0
    wait_until(lambda: all(map(gone, workers)), timeout=60, what="the end of the workers")
    wait_until(lambda: set(postgres.backends()) <= before, timeout=60, what="the end of the server's backends")


@pytest.mark.slow
def test_sigterm_lets_a_running_request_finish(serve: Serve, site: Path) -> None:
    (site / "wsgi.py").write_text(SLOW_APPLICATION)
    server, url = serve()
    answers: list[bytes] = []

    def ask() -> None:
        with urlopen(f"{url}/slow", timeout=150) as response:
            answers.append(response.read())

    client = threading.Thread(target=ask)
    client.start()
    wait_until((site / "arrived").exists, timeout=60, what="the request")
    server.send(signal.SIGTERM)
    stopping = ("Handling signal: term", "graceful shutdown triggered", "killing workers")
    wait_until(lambda: any(told in server.output() for told in stopping), timeout=60, what="the stop")
    (site / "answer").touch()
    client.join()
    assert answers == [b"done"]
    assert server.wait(timeout=120) == 0


@pytest.mark.slow
def test_sighup_replaces_every_worker_and_fails_no_request(serve: Serve) -> None:
    server, url = serve()
    before = set(descendants(server.pid))
    load = LoadGenerator(f"{url}/echo?token={{token}}", threads=4, rate=100)
    load.start()
    try:
        server.send(signal.SIGHUP)
        wait_until(lambda: all(map(gone, before)), timeout=60, what="the end of the old workers")
    finally:
        result = load.stop()
    assert result.requests > 0
    assert (result.failed, result.wrong) == (0, 0), result.errors
    by_the_new_workers = requests(url, 50)
    assert (by_the_new_workers.failed, by_the_new_workers.wrong) == (0, 0), by_the_new_workers.errors
