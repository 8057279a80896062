"""Events are kept only for who wants them, and repetitions do not push out what came before."""

from __future__ import annotations

import pytest

from wsgi_dbguard import events


@pytest.fixture(autouse=True)
def _nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_ring", None)


def told() -> list[tuple[str, str, int]]:
    return [(each.what, each.pool, each.count) for each in events.recent()]


def test_nothing_is_kept_until_somebody_wants_it() -> None:
    events.note("one")
    events.keep()
    events.note("two")
    events.keep()
    assert told() == [("two", "", 1)]


def test_what_repeats_is_one_event_with_a_count() -> None:
    events.keep()
    for _ in range(100):
        events.note("replaced", "a")
        events.note("away", "a", bad=True)
    events.note("replaced", "b")
    assert told() == [("replaced", "a", 100), ("away", "a", 100), ("replaced", "b", 1)]
    assert [each.bad for each in events.recent()] == [False, True, False]


def test_after_a_minute_it_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    events.keep()
    for now in (1000.0, 1059.0, 1061.0):
        monkeypatch.setattr(events, "time", lambda now=now: now)
        events.note("away")
    assert [(each.first, each.last, each.count) for each in events.recent()] == [(1000, 1059, 2), (1061, 1061, 1)]


def test_only_the_last_ones_are_kept() -> None:
    events.keep()
    for number in range(60):
        events.note(str(number))
    assert [each.what for each in events.recent()] == [str(number) for number in range(10, 60)]


def test_a_forked_child_has_none_and_keeps_its_own() -> None:
    events.keep()
    events.note("one")
    events.reset()
    assert told() == []
    events.note("two")
    assert told() == [("two", "", 1)]
