"""Clients read what they wrote, over servers that share nothing but a secret, while replay is paused and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_dbguard.lab.own_writes import own_writes
from wsgi_dbguard.lab.replication import MariaDBPair, Pair, PostgreSQLPair

pytestmark = pytest.mark.slow

PAIRS = 400


@pytest.fixture(scope="module", params=[PostgreSQLPair, MariaDBPair], ids=["PostgreSQL", "MariaDB"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with request.param() as pair:
        yield pair


def test_who_drops_the_cookie_reads_stale_data(pair: Pair, tmp_path: Path) -> None:
    assert own_writes(pair, tmp_path, pairs=PAIRS, remembers=False).stale > 0


def test_who_keeps_the_cookie_reads_what_was_written(pair: Pair, tmp_path: Path) -> None:
    outcome = own_writes(pair, tmp_path, pairs=PAIRS, isolation="REPEATABLE READ")
    assert (outcome.pairs, outcome.stale, outcome.failed) == (PAIRS, 0, 0)
    assert outcome.replica > 0
