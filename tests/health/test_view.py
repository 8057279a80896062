"""What the page concludes from the workers' figures."""

from __future__ import annotations

from typing import Any

import pytest

from wsgi_dbguard.health import view
from wsgi_dbguard.health.snapshot import SLOT, SLOTS
from wsgi_dbguard.health.view import spell

NOW = 1_800_000_003.0


def document(workers: list[dict[str, Any]]) -> dict[str, Any]:
    return view.document(workers, NOW)


def pool(name: str = "db", state: str = "ready", **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(
        ("in_use", "connections", "idle", "waiting", "checkouts", "connects", "pings", "restored", "invalidations",
         "outages", "held", "refused"), 1,
    )  # fmt: skip
    away_for = 3.0 if state == "away" else None
    made: dict[str, Any] = {
        "name": name,
        "state": state,
        "away_for": away_for,
        "limit": 5,
        "checks": {},
        "retired": {},
        "history": [],
    }
    return {**counts, **made, **more}


def worker(pid: int, *pools: dict[str, Any], **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "pid": pid,
        "started": NOW - pid,
        "written": NOW,
        "ending": False,
        "requests": 0,
        "events": [],
    }
    return {**made, "pools": list(pools), **more}


def event(what: str, last: float, count: int = 1, pool: str = "db") -> dict[str, Any]:
    return {"what": what, "first": last, "last": last, "count": count, "pool": pool, "bad": False}


@pytest.mark.parametrize(
    ("workers", "state", "headline", "detail"),
    [
        ([worker(1, pool()), worker(2, pool(state="unused"))], "ready", "All databases can be reached", "last asked"),
        ([worker(1)], "unused", "No database was used yet", "first request"),
        (
            [worker(1, pool(), pool("other", "away")), worker(2, pool(), pool("other"))],
            "away", "Database away: other", "1 of 2 workers cannot connect, for 3 s",
        ),
        ([worker(1, pool(state="away"))], "away", "Database away: db", "The only worker cannot connect"),
        ([worker(1, pool(), ending=True), worker(2, pool(), ending=True)], "ending", "The server is ending", "begun"),
        ([worker(1, pool(), ending=True), worker(2, pool())], "ready", "All databases", ""),
        ([worker(1, pool(state="exhausted"))], "exhausted", "Requests wait for a connection: db", "every connection"),
        ([worker(1, pool()), worker(2, pool(), written=0.0)], "silent", "A worker is silent", "1 of 2 workers"),
    ],
)  # fmt: skip
def test_the_worst_comes_first(workers: list[dict[str, Any]], state: str, headline: str, detail: str) -> None:
    seen = document(workers)
    assert seen["state"] == state
    assert headline in seen["headline"]
    assert detail in seen["detail"]


def test_workers_stand_in_the_order_of_their_age_whoever_answers() -> None:
    seen = document([worker(1, pool()), worker(3, pool()), worker(2, pool())])
    assert seen["answered_by"] == 1
    assert [each["pid"] for each in seen["workers"]] == [3, 2, 1]


def test_sums_are_of_all_workers_by_database() -> None:
    seen = document(
        [worker(1, pool(checkouts=2, retired={"dead": 1})), worker(2, pool(checkouts=3, retired={"dead": 4}))]
    )
    (database,) = seen["databases"]
    assert database["sums"]["checkouts"] == 5
    assert database["retired"] == {"dead": 5}


def test_steps_of_all_workers_meet_at_their_time_and_old_ones_are_gone() -> None:
    now = int(NOW // SLOT)
    one = [[now - SLOTS, 9, 9, 9, 9, 1], [now - 2, 1, 2, 0, 10, 0], [now - 1, 1, 2, 0, 10, 0]]
    two = [[now - 1, 3, 4, 0, 5, 1]]
    (database,) = document([worker(1, pool(history=one)), worker(2, pool(history=two))])["databases"]
    assert database["steps"][-3:] == [[1, 2, 0, 10, 0], [4, 6, 0, 15, 1], [0, 0, 0, 0, 0]]
    assert sum(step[0] for step in database["steps"]) == 5
    assert database["known"] == 3


def test_what_several_workers_met_together_is_one_event() -> None:
    seen = document([
        worker(1, pool(), events=[event("away", 100.0), event("back", 160.0, 2), event("away", 200.0)]),
        worker(2, pool(), events=[event("away", 101.0), event("back", 161.0), event("back", 180.0)]),
    ])  # fmt: skip
    told = [(each["what"], each["count"], sorted(each["pids"])) for each in seen["events"]]
    assert told == [("away", 1, [1]), ("back", 1, [2]), ("back", 3, [1, 2]), ("away", 2, [1, 2])]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (600, "10 min"), (7200, "2 h"), (864000, "10 days")]
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert spell(seconds) == words
