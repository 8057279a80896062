"""A watch through a pooler, which gives each transaction another backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from wsgi_dbguard.lab.pgbouncer import PgBouncer, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.watch import Beat, Fault, Heart, verdict

from .following import nothing

ENOUGH = 8  # beats; psycopg prepares a statement at its sixth


def test_statements_that_psycopg_would_prepare_are_no_fault(postgres: PostgreSQL, follow: Callable[..., Heart]) -> None:
    def seen(beats: Sequence[Beat]) -> bool:
        return beats[-1].number >= ENOUGH

    try:
        pooler = PgBouncer(postgres, settings={"default_pool_size": "1"})
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with pooler:
        found = verdict(follow(pooler.url("psycopg"), (seen, nothing)).beats)
    assert found.fault is Fault.NONE, found
