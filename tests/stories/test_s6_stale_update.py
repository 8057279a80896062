"""S6, the stale update: clients that send the same request twice at once, and get "UPDATE statement on table 'items'
expected to update 1 row(s); 0 were matched" as a 500. Flask, Flask-SQLAlchemy, gunicorn, PostgreSQL.

Both requests read the row, and then want to change it: the second finds it changed, or gone. Here they meet for
certain: the row is locked by somebody else until both wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.shop import Answer, Shop, row

pytestmark = pytest.mark.slow

STALE = "expected to update 1 row(s); 0 were matched"


@pytest.fixture(params=[False, True], ids=["unguarded", "guarded"])
def shop(request: pytest.FixtureRequest, postgres: PostgreSQL, tmp_path: Path) -> Iterator[Shop]:
    with Shop("shop_flask", postgres, tmp_path, guarded=request.param, threads=4) as shop:
        yield shop


@pytest.fixture
def guarded(request: pytest.FixtureRequest) -> bool:
    return bool(request.node.callspec.params["shop"])


def check(late: Answer, shop: Shop, guarded: bool) -> None:
    """What the client that came too late is told."""
    assert STALE in shop.server.child.output()
    if not guarded:
        assert late.status == 500
        return
    problem = json.loads(late.body)
    assert (late.status, problem["type"], problem["status"]) == (409, "urn:wsgi-dbguard:conflict", 409)


def test_the_same_request_twice_at_once(shop: Shop, guarded: bool) -> None:
    with shop.locked(row(1)):
        both = [shop.later("POST", "/items/1/sell") for _ in range(2)]
        shop.waiting(2)
    early, late = sorted((each.result() for each in both), key=lambda answer: answer.status)
    assert early.status == 200
    check(late, shop, guarded)
    assert shop.ask("GET", "/items.csv").body == "name,stock\nanvil,9\nbellows,10\n"


def test_update_of_a_row_that_was_deleted_meanwhile(shop: Shop, guarded: bool) -> None:
    with shop.locked(row(1)):
        early = shop.later("POST", "/items/1/delete")
        shop.waiting(1)
        late = shop.later("POST", "/items/1/sell")
        shop.waiting(2)
    assert early.result().status == 200
    check(late.result(), shop, guarded)
    assert shop.names() == ["bellows"]
