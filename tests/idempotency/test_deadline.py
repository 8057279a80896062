"""The guard's deadline holds for the keys as well: their table may be locked, or the server may have stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tests.letting_go import let_go
from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent
from wsgi_dbguard.lab.postgres import PostgreSQL

from .conftest import KEYS, Database, Shop, kind, orders, post, url_of

LONG = 10.0  # seconds, after which a test has failed


@pytest.fixture
def locked(database: Database, make_engine: Callable[..., Engine]) -> Callable[..., Any]:
    """`with locked():` nobody else reads or writes the table of the keys, as in a migration."""
    other = make_engine(url_of(database))
    lock, unlock = f"lock tables {KEYS} write", "unlock tables"
    if isinstance(database, PostgreSQL):
        lock, unlock = f"lock table {KEYS} in access exclusive mode", "rollback"

    @contextmanager
    def hold() -> Iterator[None]:
        with other.connect() as connection:
            connection.execute(text(lock))
            with let_go(lambda: connection.execute(text(unlock)), after=LONG):
                yield

    return hold


def test_a_key_that_cannot_be_claimed_in_time_is_unavailable(
    shop: Shop, engine: Engine, database: Database, locked: Callable[..., Any]
) -> None:
    app = DBGuard(Idempotent(shop, engine, principal=None), engine, deadline=0.3)
    with locked():
        assert kind(post(app)) == (503, "unavailable")
    assert shop.runs == 0
    assert post(app).text == "apple 1"
    assert orders(database) == ["apple"]


def test_an_answer_that_cannot_be_stored_in_time_is_sent(
    shop: Shop, engine: Engine, database: Database, locked: Callable[..., Any]
) -> None:
    held = locked()
    shop.after = lambda session: held.__enter__()
    app = DBGuard(Idempotent(shop, engine, principal=None), engine, deadline=0.3)
    try:
        assert post(app).text == "apple 1"
    finally:
        held.__exit__(None, None, None)
    assert kind(post(app)) == (409, "idempotency-running")
    database.query(f"update {KEYS} set expires = 1")
    assert kind(post(app)) == (409, "idempotency-applied")
    assert orders(database) == ["apple"]
