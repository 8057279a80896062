"""Flask, Django and Pyramid applications, unchanged but for the wrapping, through all that a database does to them.

Each scenario is played on a real gunicorn and PostgreSQL, first without the guard: what users see today.
"""

from __future__ import annotations

from collections.abc import Iterator
from http.client import IncompleteRead
from pathlib import Path

import pytest

from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.shop import COMMIT, TABLE, Shop, row

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["shop_flask", "shop_django", "shop_pyramid"])
def app(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["unguarded", "guarded"])
def guarded(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def served(app: str, guarded: bool, postgres: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with Shop(app, postgres, tmp_path_factory.mktemp(app), guarded=guarded, WSGI_DBGUARD_HOLD="30") as shop:
        yield shop


@pytest.fixture
def shop(served: Shop, app: str, guarded: bool) -> Shop:
    """With one thread."""
    if app == "shop_django" and not guarded:
        served.restart()  # one failure, and its session is of no use any more
    else:
        served.restock()
    return served


@pytest.fixture
def busy_shop(app: str, guarded: bool, postgres: PostgreSQL, tmp_path: Path) -> Iterator[Shop]:
    """With four threads, and a pool of three connections."""
    with Shop(app, postgres, tmp_path, guarded=guarded, threads=4) as shop:
        yield shop


def seen(shop: Shop, *, path: str = "/items") -> str:
    return str(shop.ask("GET", path))


def test_connection_that_died_in_the_pool(shop: Shop, guarded: bool) -> None:
    assert seen(shop) == "200"
    (backend,) = shop.backends()
    shop.postgres.terminate(backend)
    assert seen(shop) == ("200" if guarded else "500")


def test_connection_that_dies_in_the_middle_of_a_get(shop: Shop, guarded: bool) -> None:
    with shop.locked(TABLE):
        answer = shop.later("GET", "/items")
        (first,) = shop.waiting(1)
        shop.postgres.terminate(first)
        if guarded:
            assert shop.waiting(1) != [first]
    assert str(answer.result()) == ("200" if guarded else "500")


def test_connection_that_dies_in_the_middle_of_a_post(shop: Shop, guarded: bool) -> None:
    with shop.locked(TABLE):
        answer = shop.later("POST", "/items", name="chisel")
        shop.postgres.terminate(*shop.waiting(1))
        assert str(answer.result()) == ("503 unavailable" if guarded else "500")
    assert shop.names() == ["anvil", "bellows"]


def test_connection_that_dies_during_commit(shop: Shop, guarded: bool) -> None:
    with shop.locked(COMMIT):
        answer = shop.later("POST", "/items", name="chisel")
        shop.waiting(1)
        shop.proxy.reset()
        assert str(answer.result()) == ("503 outcome-unknown" if guarded else "500")
    # The server heard nothing of it.
    wait_until(lambda: "chisel" in shop.names(), timeout=60.0, what="the commit")


def test_database_that_is_away_for_a_moment(shop: Shop, guarded: bool) -> None:
    def told() -> int:
        return shop.server.child.output().count("the database is away")

    before = told()
    shop.proxy.refuse()
    try:
        answer = shop.later("POST", "/items", name="chisel")
        if guarded:
            wait_until(lambda: told() > before, timeout=60.0, what="a request that is held")
        else:
            assert str(answer.result()) == "500"
    finally:
        shop.proxy.up()
    if guarded:
        assert str(answer.result()) == "201"
    assert shop.names() == ["anvil", "bellows"] + ["chisel"] * guarded


def test_query_that_takes_longer_than_the_deadline(
    app: str, guarded: bool, postgres: PostgreSQL, tmp_path: Path
) -> None:
    # Patience: on a busy machine a cancel takes its time, and its socket is not to be cut before.
    limits = {"WSGI_DBGUARD_DEADLINE": "1", "WSGI_DBGUARD_PING_TIMEOUT": "20"}
    with Shop(app, postgres, tmp_path, guarded=guarded, threads=2, **limits) as shop:
        with shop.locked(TABLE):
            answer = shop.later("GET", "/items")
            shop.waiting(1)
            if guarded:
                assert str(answer.result()) == "503 unavailable"
                wait_until(lambda: not shop.backends("state = 'active'"), timeout=60.0, what="the end of the query")
            else:
                assert not answer.done()  # it waits for as long as the lock is held
        assert str(answer.result()) == ("503 unavailable" if guarded else "200")
        assert seen(shop) == "200"


def test_two_updates_of_one_row(busy_shop: Shop, guarded: bool) -> None:
    with busy_shop.locked(row(1)):
        both = [busy_shop.later("POST", "/items/1/sell") for _ in range(2)]
        busy_shop.waiting(2)
    assert sorted(str(each.result()) for each in both) == ["200", "409 conflict" if guarded else "500"]


def test_exhausted_pool(busy_shop: Shop, guarded: bool) -> None:
    with busy_shop.locked(TABLE):
        served = [busy_shop.later("GET", "/items") for _ in range(3)]
        busy_shop.waiting(3)
        assert seen(busy_shop) == ("503 unavailable" if guarded else "500")
    assert [str(each.result()) for each in served] == ["200", "200", "200"]


def test_own_error_stays_the_applications(shop: Shop, guarded: bool) -> None:
    assert seen(shop, path="/broken") == "500"
    assert seen(shop) == "200"


def test_own_error_after_a_failure_that_was_got_over_stays_the_applications(shop: Shop, guarded: bool) -> None:
    assert shop.ask("GET", "/report").body == "3"
    with shop.locked(TABLE):
        answer = shop.later("GET", "/report")
        shop.postgres.terminate(*shop.waiting(1))
        assert str(answer.result()) == "500"


def test_integrity_error_stays_the_applications(shop: Shop, guarded: bool) -> None:
    assert str(shop.ask("POST", "/items", name="anvil")) == "500"


def test_session_that_a_failure_made_invalid(shop: Shop, app: str, guarded: bool) -> None:
    with shop.locked(TABLE):
        answer = shop.later("POST", "/items/1/sell")
        shop.postgres.terminate(*shop.waiting(1))
        answer.result()
    # Those of Flask-SQLAlchemy and of a Pyramid request end with it.
    invalid = app == "shop_django" and not guarded
    assert [seen(shop) for _ in range(3)] == ["500" if invalid else "200"] * 3
    if invalid:
        assert "Can't reconnect until invalid transaction is rolled back" in shop.server.child.output()


def test_stream_comes_as_it_is_made(shop: Shop, app: str, guarded: bool) -> None:
    with shop.locked(TABLE):
        stream = shop.open("GET", "/items.csv")
        assert (stream.status, stream.readline()) == (200, b"name,stock\n")
        shop.waiting(1)
    with stream:
        assert stream.read() == b"anvil,10\nbellows,10\n"
    if guarded or app != "shop_django":
        # Nothing is left open by it.
        wait_until(lambda: not shop.backends("state <> 'idle'"), timeout=60.0, what="idle connections")
    else:
        assert shop.backends("state = 'idle in transaction'") != []


def test_stream_whose_connection_dies_is_cut_short_and_harms_no_other(shop: Shop, app: str, guarded: bool) -> None:
    with shop.locked(TABLE):
        stream = shop.open("GET", "/items.csv")
        assert (stream.status, stream.readline()) == (200, b"name,stock\n")
        shop.postgres.terminate(*shop.waiting(1))
        with stream, pytest.raises((IncompleteRead, ConnectionError)):
            stream.read()
    assert seen(shop) == ("200" if guarded or app != "shop_django" else "500")
