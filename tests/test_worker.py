"""Who wants to know that this process serves is told: by the hooks, in each worker, and at once if it does already."""

from __future__ import annotations

import logging

import pytest

from wsgi_dbguard import worker


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_listeners", [])
    monkeypatch.setattr(worker, "_serving", False)
    monkeypatch.setattr(worker, "_ending", False)


def test_listeners_are_told_when_it_serves_also_those_that_come_later() -> None:
    told: list[str] = []

    def early() -> None:
        told.append("early")

    worker.on_serving(early)
    worker.on_serving(early)
    assert told == []
    worker.serving()
    worker.on_serving(lambda: told.append("late"))
    assert told == ["early", "late"]


def test_a_listener_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    worker.on_serving(lambda: 1 / 0)
    worker.on_serving(lambda: told.append("second"))
    with caplog.at_level(logging.ERROR):
        worker.serving()
    assert told == ["second"]
    assert "failed" in caplog.text


def test_a_forked_child_neither_serves_nor_ends() -> None:
    worker.serving()
    worker.end()
    assert worker.is_ending()
    worker._after_fork()
    told: list[str] = []
    worker.on_serving(lambda: told.append("too soon"))
    assert (told, worker.is_ending()) == ([], False)
