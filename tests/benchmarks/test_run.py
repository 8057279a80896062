"""The benchmarks run: every contender works, every figure is there. What they say is not for a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
CONTENDERS = {"nothing", "pool_pre_ping", "pool_recycle", "NullPool", "ping per request", "PooledDB", "guard"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_part_runs_and_has_a_figure_of_each_contender(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    command = [sys.executable, str(RUN), "--smoke", "--profile", "--json", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    figures = json.loads(told.read_text())
    rows = {(row["what"], row["where"]): set(row["contenders"]) for row in figures["rows"]}
    assert rows["request with five checkouts", "psycopg2, loopback"] == CONTENDERS
    assert rows["request with five checkouts", "psycopg, loopback"] == CONTENDERS | {"psycopg_pool"}
    assert {"nothing", "guard", "floor: listener", "floor: + poll"} <= rows["checkout + checkin", "psycopg2, loopback"]
    assert rows["request with one query, cold", "psycopg2"] == {"nothing", "floor", "guard"}
    assert rows["in the child after a fork", "1 x 10 connections"] == {"nothing", "dispose", "guard"}
    whats = {what for what, _ in rows}
    assert {"import beyond sqlalchemy.orm", "gunicorn: start to first answer", "request, engines", "insert"} <= whats
    assert "throughput" in whats or any("wrk" in line for line in figures["not measured"])
    for row in figures["rows"]:
        for figure in row["contenders"].values():
            assert figure["median"] > 0
    assert {goal["met"] for goal in figures["goals"]} <= {True, False}
    assert "Goals" in done.stdout
    assert len(figures["profile"]) == 4
    assert all(figures["profile"].values())


WITHOUT_POSTGRESQL = """
import sys

from wsgi_dbguard.lab import provision

def postgresql(**options):
    raise provision.ServerMissing("no PostgreSQL here")

provision.postgresql = postgresql
sys.path.insert(0, sys.argv.pop(1))
import run

run.VERSIONS += ("no-such-package",)
run.main()
"""


def test_what_is_missing_is_told_and_skipped(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    options = ["--smoke", "--only", "growth", "--profile", "--json", str(told)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSTGRESQL, str(RUN.parent), *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "not measured: growth: no PostgreSQL here" in done.stdout
    figures = json.loads(told.read_text())
    assert figures["not measured"] == ["growth: no PostgreSQL here", "profile: no PostgreSQL here"]
    assert figures["versions"]["no-such-package"] is None


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    command = [sys.executable, str(RUN), "--smoke", "--json", str(tmp_path / "nowhere" / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "No such file or directory" in done.stderr
