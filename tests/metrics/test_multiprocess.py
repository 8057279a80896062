"""Several processes, whichever of them is asked: figures are the truth after workers have come and gone under load."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from wsgi_dbguard.lab.load import LoadGenerator
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.process import gone, wait_until
from wsgi_dbguard.lab.servers import APPS, Server, gunicorn, uwsgi

pytestmark = pytest.mark.slow

NAME = "measured"
RECYCLES = 20
WORKERS = 2
ENOUGH = ("--max-requests=12",)
SPAWNED = re.compile(r"Booting worker with pid: (\d+)|(?:S|s|Res)pawned uWSGI worker \d+ \((?:new )?pid: (\d+)")
SERVERS: dict[str, tuple[Callable[..., Server], tuple[str, ...]]] = {
    "gunicorn": (gunicorn, ("--worker-class=gthread", "--threads=2", f"--workers={WORKERS}", "--preload")),
    "uWSGI": (
        uwsgi,
        ("--master", f"--processes={WORKERS}", "--threads=2", "--min-worker-lifetime=0", "--forkbomb-delay=0"),
    ),
}


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    try:
        server = PostgreSQL(settings={"log_connections": "on"})
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "prometheus"
    directory.mkdir()
    return directory


@pytest.fixture(params=SERVERS)
def serve(
    request: pytest.FixtureRequest, database: PostgreSQL, files: Path, tmp_path: Path
) -> Iterator[Callable[..., Server]]:
    """`serve(*options, **variables)`: the measured application, until the end of the test."""
    start, common = SERVERS[request.param]
    started: list[Server] = []

    def serve(*options: str, **variables: str) -> Server:
        server = start(
            "measured:guarded", *common, *options, guarded=True, directory=tmp_path, path=[APPS],
            DATABASE_URL=database.url(application_name=NAME), PROMETHEUS_MULTIPROC_DIR=str(files), **variables,
        )  # fmt: skip
        started.append(server)
        server.ready("/pid")
        return server

    yield serve
    for server in started:
        server.stop()


def spawned(server: Server) -> list[int]:
    """All workers that there ever were, in order."""
    return [int(one or other) for one, other in SPAWNED.findall(server.child.output())]


def opened(database: PostgreSQL) -> int:
    """How many connections the application has ever opened, by the server's log."""
    return database.log.read_text().count(f"application_name={NAME}")


def test_figures_are_the_truth_after_twenty_workers_have_come_and_gone_under_load(
    serve: Callable[..., Server],
    database: PostgreSQL,
    scrape: Callable[[str], Any],
    open_at: Callable[[PostgreSQL], int],
    files: Path,
) -> None:
    before = opened(database)
    server = serve(*ENOUGH, MEASURED_CONNECTIONS="1")
    load = LoadGenerator(server.url + "/echo?token={token}", threads=4)
    load.start()
    try:
        wait_until(lambda: len(spawned(server)) >= RECYCLES + WORKERS, timeout=120, what=f"{RECYCLES} recycled workers")
    finally:
        load.stop()
    result = load.result
    assert (result.failed, result.wrong) == (0, 0), result.errors

    def settled() -> bool:
        page = scrape(server.url + "/metrics")
        idle = page["db_client_connection_count idle"]
        return bool(idle == open_at(database)) and page["db_client_connection_count used"] == 0

    wait_until(settled, timeout=60, what="the gauges", interval=0.5)
    page = scrape(server.url + "/metrics")
    assert page["wsgi_dbguard_checkouts_total"] == result.requests + 1
    assert page["db_client_connection_wait_time_seconds_count"] == result.requests + 1
    assert page["db_client_connection_use_time_seconds_count"] == result.requests + 1
    assert page["wsgi_dbguard_connects_total"] == opened(database) - before
    assert page["db_client_connection_create_time_seconds_count"] == opened(database) - before
    # One of the master's in each worker that has served; the last ones may have had nothing to do.
    assert RECYCLES <= page["wsgi_dbguard_severed_total"] <= len(spawned(server))
    # Of the master and the workers; their successors have taken over those of the dead.
    assert len(list(files.glob("*.lock"))) <= 1 + 2 * WORKERS


def test_gauges_of_a_killed_worker_vanish_and_its_counters_stay(
    serve: Callable[..., Server], database: PostgreSQL, scrape: Callable[[str], Any], open_at: Callable[..., int]
) -> None:
    server = serve()
    LoadGenerator(server.url + "/echo?token={token}", threads=4, requests=100).run()
    for killed in spawned(server):
        with suppress(ProcessLookupError):
            os.kill(killed, signal.SIGKILL)
        wait_until(lambda killed=killed: gone(killed), timeout=60, what=f"the end of {killed}")  # type: ignore[misc]
    wait_until(lambda: len(spawned(server)) >= 2 * WORKERS and open_at(database) == 0, timeout=60, what="other workers")
    page = scrape(server.url + "/metrics")
    assert page["wsgi_dbguard_checkouts_total"] == page["db_client_connection_use_time_seconds_count"] == 100

    def vanished() -> bool:
        page = scrape(server.url + "/metrics")
        return bool(page["db_client_connection_count"] == page["db_client_connection_max"] == 0)

    # Not at once: who takes the slot of a dead worker has its gauges until it has removed them.
    wait_until(vanished, timeout=60, what="the end of the gauges")
    LoadGenerator(server.url + "/echo?token={token}", threads=4, requests=100).run()
    page = scrape(server.url + "/metrics")
    assert page["wsgi_dbguard_checkouts_total"] == 200
    wait_until(
        lambda: scrape(server.url + "/metrics")["db_client_connection_count"] == open_at(database) > 0,
        timeout=60,
        what="the gauges",
    )


def test_gauges_of_a_killed_worker_are_gone_before_anybody_asks(serve: Callable[..., Server], files: Path) -> None:
    server = serve()
    LoadGenerator(server.url + "/echo?token={token}", threads=4, requests=100).run()
    assert list(files.glob("gauge_live*"))
    # gunicorn's master hears of it; uWSGI's tells nobody, there it is the next worker that removes them.
    for pid in spawned(server):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not list(files.glob("gauge_live*")), timeout=60, what="the end of the gauges")
    assert list(files.glob("counter_*"))
