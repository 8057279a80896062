"""An application that opens connections and leaves a transaction open at import, on servers that fork their workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgi_dbguard.lab.cross_talk import SETUPS, Setup, cross_talk
from wsgi_dbguard.lab.postgres import PostgreSQL

pytestmark = pytest.mark.slow

REQUESTS = 400

each_setup = pytest.mark.parametrize("setup", [pytest.param(setup, id=setup.name) for setup in SETUPS])


@each_setup
def test_every_request_gets_its_own_answer(setup: Setup, postgres: PostgreSQL, tmp_path: Path) -> None:
    outcome = cross_talk(setup, guarded=True, requests=REQUESTS, seconds=200.0, postgres=postgres, directory=tmp_path)
    assert (outcome.load.wrong, outcome.load.failed) == (0, 0), outcome.load.errors
    assert outcome.load.requests == REQUESTS
    assert outcome.kept
    assert outcome.committed == 0
    assert outcome.left == 0


@each_setup
def test_without_the_guard_only_lazy_apps_are_safe(setup: Setup, postgres: PostgreSQL, tmp_path: Path) -> None:
    # Until the first one goes wrong: while one worker alone happens to answer, nothing does.
    requests = 100 * REQUESTS if setup.shares else REQUESTS
    outcome = cross_talk(
        setup, guarded=False, requests=requests, seconds=60.0, once=True, postgres=postgres, directory=tmp_path
    )
    assert bool(outcome.load.wrong + outcome.load.failed) is setup.shares, outcome.load
