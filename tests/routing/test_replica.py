"""What a replica is known to have, by the answers that it gave."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import create_engine

from wsgi_dbguard.routing.config import RoutingConfig
from wsgi_dbguard.routing.positions import Lsn, Position
from wsgi_dbguard.routing.replica import Replica

Answer = Callable[[], Lsn]


@pytest.fixture
def replica() -> Replica:
    return Replica(create_engine("postgresql+psycopg2://"), RoutingConfig(), "replica")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Of the server, the next one first."""
    told: list[Answer] = []
    monkeypatch.setattr("wsgi_dbguard.routing.replica.applied", lambda *ignored: told.pop(0)())
    return told


def nobody() -> Position | None:
    raise AssertionError("the primary is not asked")


def compare(replica: Replica, *samples: Lsn) -> float | None:
    """The n-th sample was taken at n; which one is the last that it has."""
    replica.compare([(float(at), each) for at, each in enumerate(samples)], nobody)
    return replica.covered


def test_it_is_as_far_behind_as_the_newest_sample_that_it_has(replica: Replica, answers: list[Answer]) -> None:
    answers += [lambda: Lsn(5), lambda: Lsn(7)]
    assert replica.ask()
    assert compare(replica, Lsn(4), Lsn(5), Lsn(6)) == 1.0
    assert replica.ask()
    assert compare(replica, Lsn(8)) == 1.0


def test_an_answer_that_was_overtaken_takes_nothing_back(replica: Replica, answers: list[Answer]) -> None:
    def slow() -> Lsn:
        assert replica.ask()
        assert compare(replica, Lsn(9)) == 0.0
        return Lsn(5)

    answers += [slow, lambda: Lsn(9)]
    assert replica.ask()
    assert replica.has(Lsn(9))
    assert replica.covered == 0.0


def test_one_that_has_gone_back_is_compared_anew(replica: Replica, answers: list[Answer]) -> None:
    answers += [lambda: Lsn(9), lambda: Lsn(5)]
    assert replica.ask()
    assert compare(replica, Lsn(9)) == 0.0
    assert replica.ask()
    assert not replica.has(Lsn(9))
    assert replica.covered is None


def test_one_of_another_timeline_is_out(replica: Replica, answers: list[Answer]) -> None:
    answers += [lambda: Lsn(9, 1)]
    assert replica.ask()
    replica.compare([(0.0, Lsn(5, 1)), (1.0, Lsn(6, 2))], lambda: Lsn(7, 2))
    assert replica.covered is None
    assert replica.is_out(replica.out_until - 0.1)
    assert not replica.has(Lsn(6, 2))


def test_one_that_is_ahead_of_an_old_sample_is_not(replica: Replica, answers: list[Answer]) -> None:
    """Such as where the primary was another one when it was asked."""
    answers += [lambda: Lsn(9, 1)]
    assert replica.ask()
    replica.compare([(0.0, Lsn(6, 2))], lambda: Lsn(9, 1))
    assert not replica.out_until


def test_without_an_answer_of_the_primary_nothing_more_is_known(replica: Replica, answers: list[Answer]) -> None:
    answers += [lambda: Lsn(9, 1)]
    assert replica.ask()
    replica.compare([(0.0, Lsn(5, 1)), (1.0, Lsn(6, 2))], lambda: None)
    assert replica.covered == 0.0
    assert not replica.out_until
