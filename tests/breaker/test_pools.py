"""Whatever its kind and its creator, a guarded pool opens its connections by way of the circuit breaker."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest
from sqlalchemy import create_engine, event, pool, text
from sqlalchemy.exc import OperationalError

from wsgi_dbguard import DatabaseUnavailable, guard

from .conftest import until


@pytest.mark.usefixtures("clock")  # no time for a probe passes meanwhile
@pytest.mark.parametrize("kind", [pool.QueuePool, pool.NullPool, pool.SingletonThreadPool, pool.StaticPool])
def test_each_pool_and_what_dispose_makes_of_it_goes_by_it(kind: type[pool.Pool]) -> None:
    """A `do_connect` listener and a creator are asked at each attempt."""
    engine = create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none", poolclass=kind)
    asked = []
    event.listen(engine, "do_connect", lambda *args: asked.append(1))
    guarded = guard(engine)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="refused"):  # who tried, and who was told
            engine.connect()
        engine.dispose()
    assert len(asked) == 1
    assert guarded.stats()["away"]
    assert guarded.stats()["refused"] == 1


@pytest.mark.usefixtures("clock")
def test_a_creator_of_the_users_goes_by_it_too() -> None:
    calls = []

    def creator() -> Any:
        calls.append(1)
        raise psycopg2.OperationalError("Connection reset")

    engine = create_engine("postgresql+psycopg2://", creator=creator)
    guard(engine)
    for _ in range(3):
        with pytest.raises(OperationalError):
            engine.connect()
    assert len(calls) == 2


def test_engines_that_share_a_pool_share_its_breaker() -> None:
    first = create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none")
    second = create_engine("postgresql+psycopg2://", pool=first.pool)
    guard(first)
    creator = first.pool._creator
    guard(second)
    assert second.pool._creator is creator


def test_a_real_pool_comes_back(postgres: Any, make_engine: Any) -> None:
    engine = make_engine(postgres.url("psycopg2"))
    guarded = guard(engine, retry_after=0.1)
    guarded.breaker._failed(psycopg2.OperationalError("Connection reset"))

    def works() -> bool:
        try:
            with engine.connect() as connection:
                return bool(connection.scalar(text("select 1")))
        except DatabaseUnavailable:
            return False

    until(works)
    assert not guarded.stats()["away"]
