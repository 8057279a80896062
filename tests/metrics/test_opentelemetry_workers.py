"""OpenTelemetry in workers that come and go under load: the figures of all of them add up to the truth."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from wsgi_dbguard.lab.load import LoadGenerator
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.servers import APPS, gunicorn

RECYCLES = 20
WORKERS = 3


@pytest.mark.slow
def test_figures_are_the_truth_after_twenty_workers_have_come_and_gone_under_load(
    postgres: PostgreSQL, tmp_path: Path, open_at: Callable[[PostgreSQL], int]
) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    server = gunicorn(
        "measured_otel:guarded",
        "--worker-class=gthread", "--threads=2", f"--workers={WORKERS}", "--preload", "--max-requests=20",
        guarded=True, directory=tmp_path, path=[APPS],
        DATABASE_URL=postgres.url(application_name="measured"), FIGURES=str(figures),
    )  # fmt: skip
    living: dict[int, dict[str, Any]] = {}
    asked = 0

    def ask() -> bool:
        """Whether what the living tell is what the server has. They are asked until each has answered lately."""
        nonlocal asked
        living.clear()
        for _ in range(4 * WORKERS):
            asked += 1
            with urlopen(server.url + "/figures", timeout=60) as response:
                told = json.load(response)
            living[told["pid"]] = told
        return sum(int(each["db.client.connection.count"]) for each in living.values()) == open_at(postgres)

    with server:
        server.ready()
        load = LoadGenerator(server.url + "/echo?token={token}", threads=6)
        load.start()
        try:
            spawned = re.compile(r"Booting worker with pid: \d+")
            wait_until(
                lambda: len(spawned.findall(server.child.output())) >= RECYCLES + WORKERS,
                timeout=120,
                what=f"{RECYCLES} recycled workers",
            )
        finally:
            load.stop()
        assert (load.result.failed, load.result.wrong) == (0, 0), load.result.errors
        wait_until(ask, timeout=60, what="gauges that are the truth")
        assert sum(each["db.client.connection.count used"] for each in living.values()) == 0
    total: Counter[str] = Counter()
    for file in figures.iterdir():
        total.update(json.loads(file.read_text()))
    requests = load.result.requests + asked
    assert total["wsgi_dbguard.checkouts"] == requests
    assert total["db.client.connection.wait_time"] == total["db.client.connection.use_time"] == requests
    assert total["db.client.connection.create_time"] == total["wsgi_dbguard.connects"]
