"""What a worker tells of itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine

from wsgi_dbguard import events, guard, worker
from wsgi_dbguard.health import snapshot
from wsgi_dbguard.health.snapshot import SLOT, SLOTS, History, describe
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

URL = "postgresql+psycopg2://somebody:swordfish@127.0.0.1:2/named"


def pool(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"name": name, "in_use": 0, "connections": 0, "waiting": 0, "checkouts": 0, "state": "ready", **more}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def at(seconds: float) -> None:
        monkeypatch.setattr(snapshot, "time", SimpleNamespace(time=lambda: seconds))

    return at


def test_a_step_has_the_most_of_its_seconds_and_the_checkouts_of_all(clock: Callable[[float], None]) -> None:
    history = History()
    clock(10 * SLOT)
    history.note([pool(in_use=1, connections=2, checkouts=7)])
    clock(10 * SLOT + 1)
    history.note([pool(in_use=3, connections=1, checkouts=9, state="away")])
    clock(11 * SLOT)
    history.note([pool(checkouts=10, waiting=2)])
    assert history.of("a") == [[10, 3, 2, 0, 9, 1], [11, 0, 0, 2, 1, 0]]
    assert history.of("b") == []


def test_only_ten_minutes_are_kept(clock: Callable[[float], None]) -> None:
    history = History()
    for number in range(SLOTS + 5):
        clock(number * SLOT)
        history.note([pool()])
    assert len(history.of("a")) == SLOTS
    assert history.of("a")[0][0] == 5


def test_pools_of_one_address_have_names_of_their_own_and_events_the_name_of_their_pool(
    make_engine: Callable[..., Engine],
) -> None:
    one, two = make_engine(URL), make_engine(URL)
    for engine in (one, two):
        guard(engine)
    events.keep()
    events.note("the database is away", guard(two).name, bad=True)
    told = describe(5)
    names = [each["name"] for each in told["pools"] if each["name"].startswith("127.0.0.1:2/named")]
    assert names == ["127.0.0.1:2/named", "127.0.0.1:2/named #2"]
    assert told["events"][-1]["pool"] == names[1]
    assert told["requests"] == 5
    assert "swordfish" not in str(told)
    assert "somebody" not in str(told)


def test_a_database_that_comes_back_meanwhile_is_not_told_as_away_since_no_time(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = guard(make_engine(URL))
    stats = ours.stats()
    monkeypatch.setattr(ours, "stats", lambda: {**stats, "away": True})  # a moment ago
    pool = snapshot._pool(ours, {})
    assert pool is not None
    assert (pool["state"], pool["away_for"]) == ("unused", None)


def test_a_pool_that_is_waited_for_is_exhausted_and_one_in_full_use_is_not(
    postgres: PostgreSQL, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(postgres.url(), pool_size=1, max_overflow=0)
    ours = guard(engine)

    def state() -> str:
        pool = snapshot._pool(ours, {})
        assert pool is not None
        return str(pool["state"])

    assert state() == "unused"
    waiting = threading.Thread(target=lambda: engine.connect().close())
    with engine.connect():
        assert state() == "ready"
        waiting.start()
        wait_until(lambda: state() == "exhausted", timeout=30, what="somebody who waits")
    waiting.join()
    assert state() == "ready"


def test_it_says_that_it_ends() -> None:
    assert not describe(0)["ending"]
    worker.end()
    assert describe(0)["ending"]
