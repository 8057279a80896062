"""Workers are recycled, reloaded, killed and forked from under load: answers stay right, no backend is left over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.recycling import Outcome, recycle
from wsgi_dbguard.lab.setups import FORKING, INTERRUPTING, RECYCLING, RELOADING, SETUPS, recycled

pytestmark = pytest.mark.slow

FIFTY = "gunicorn gthread, preload, max_requests"
ON_MARIADB = (
    "gunicorn sync, preload, HUP",
    "gunicorn sync, preload, timeout",
    "gunicorn gthread, preload, multiprocessing",
    "uWSGI threads, max-requests",
    "uWSGI harakiri",
)


def check(outcome: Outcome) -> None:
    assert not outcome.unfinished, outcome.load
    assert (outcome.load.wrong, outcome.failed, outcome.dropped) == (0, 0, 0), outcome.load.errors
    assert outcome.astray == {}
    assert outcome.kept
    assert outcome.committed == 0
    assert outcome.left == 0


@pytest.mark.parametrize("name", [name for name in RECYCLING if name != FIFTY])  # which does more of the same
def test_recycled_workers_leave_no_backend_and_fail_no_request(name: str, postgres: PostgreSQL, tmp_path: Path) -> None:
    check(recycle(SETUPS[name], postgres, guarded=True, directory=tmp_path))


@pytest.mark.timeout(600)
def test_after_fifty_recycled_workers_the_backends_are_those_of_the_living(
    postgres: PostgreSQL, tmp_path: Path
) -> None:
    setup = replace(SETUPS[FIFTY], act=recycled(50))
    outcome = recycle(setup, postgres, guarded=True, directory=tmp_path, patience=400.0)
    check(outcome)
    assert outcome.recycled >= 50


@pytest.mark.parametrize("name", RELOADING)
def test_reloaded_workers_leave_no_backend_and_fail_no_request(name: str, postgres: PostgreSQL, tmp_path: Path) -> None:
    check(recycle(SETUPS[name], postgres, guarded=True, directory=tmp_path))


@pytest.mark.parametrize("name", INTERRUPTING)
def test_worker_killed_in_the_middle_of_a_query_disturbs_no_other(
    name: str, postgres: PostgreSQL, tmp_path: Path
) -> None:
    outcome = recycle(SETUPS[name], postgres, guarded=True, directory=tmp_path)
    check(outcome)
    assert outcome.recycled


@pytest.mark.parametrize("name", FORKING)
def test_forked_children_mules_and_masterless_workers_have_connections_of_their_own(
    name: str, postgres: PostgreSQL, tmp_path: Path
) -> None:
    check(recycle(SETUPS[name], postgres, guarded=True, directory=tmp_path))


@pytest.mark.parametrize("name", ON_MARIADB)
def test_pymysql_on_mariadb(name: str, mariadb: MariaDB, tmp_path: Path) -> None:
    check(recycle(SETUPS[name], mariadb, guarded=True, directory=tmp_path))


@pytest.mark.parametrize("name", ["gunicorn sync, preload, max_requests", "gunicorn sync, preload, os.fork"])
def test_without_the_guard_connections_are_shared_and_answers_are_not_right(
    name: str, postgres: PostgreSQL, tmp_path: Path
) -> None:
    outcome = recycle(SETUPS[name], postgres, guarded=False, directory=tmp_path, patience=3.0)
    assert outcome.load.wrong + outcome.failed + outcome.dropped
    assert any(len(pids) > 1 for pids in outcome.astray.values())
