"""After a failover a replica may have more of the old primary than the new one has: it serves nobody any more."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine

from wsgi_dbguard.routing.config import RoutingConfig
from wsgi_dbguard.routing.positions import Lsn
from wsgi_dbguard.routing.replica import Replica


class Lagging:
    """A replica whose position is the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mark = 0
        config = RoutingConfig(out_for=0.0)
        self.replica = Replica(create_engine("postgresql+psycopg2://"), config, "replica")
        monkeypatch.setattr("wsgi_dbguard.routing.replica.applied", lambda *ignored: Lsn(self.mark))

    def covered(self, mark: int, samples: list[int], primary: int | None = None) -> float | None:
        """After a question to which it answers `mark`; the n-th sample was taken at n."""
        self.mark = mark
        told = [(float(at), Lsn(each, 1)) for at, each in enumerate(samples)]
        self.replica.ask(told, lambda: None if primary is None else Lsn(primary, 1))
        return self.replica.covered


@pytest.fixture
def lagging(monkeypatch: pytest.MonkeyPatch) -> Lagging:
    return Lagging(monkeypatch)


def test_one_that_follows_counts_from_the_first_comparison_on(lagging: Lagging) -> None:
    assert lagging.covered(5, [4, 6]) is None
    assert lagging.covered(6, [4, 6, 7]) == 1.0
    assert lagging.covered(9, [4, 6, 7, 8], primary=9) == 3.0


def test_one_that_is_ahead_is_out_until_it_has_what_came_after(lagging: Lagging) -> None:
    assert lagging.covered(100, [4], primary=50) is None
    # The primary gets past it.
    assert lagging.covered(100, [4, 50, 99, 100, 101]) is None
    assert lagging.covered(100, [4, 50, 99, 100, 101, 110]) is None
    # It was made anew.
    assert lagging.covered(110, [4, 50, 99, 100, 101, 110]) == 5.0


def test_without_an_answer_of_the_primary_nothing_is_known_of_one_that_is_ahead(lagging: Lagging) -> None:
    assert lagging.covered(100, [4]) is None


def test_positions_of_another_primary_are_forgotten(lagging: Lagging) -> None:
    assert lagging.covered(5, [5]) == 0.0
    lagging.replica.forget()
    assert lagging.replica.covered is None
    assert lagging.covered(5, [5, 6]) is None
