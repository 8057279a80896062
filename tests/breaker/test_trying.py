"""The circuit breaker by itself: who tries to connect, and who is told at once that the database is away."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg2
import pytest

from wsgi_dbguard import DatabaseUnavailable

from .conftest import Clock, Database, breaker, fail, until


def test_a_failed_attempt_makes_it_away_and_the_others_are_told_at_once(clock: Clock, database: Database) -> None:
    away = breaker()
    fail(away, database)
    for _ in range(10):
        with pytest.raises(DatabaseUnavailable, match=r"(?s)the pool has been away for 0\.0 s.*Connection reset"):
            away.connect(database)
    assert (database.attempts, away.refused, away.outages) == (2, 10, 1)


def test_one_attempt_that_fails_is_tried_again_at_once(database: Database) -> None:
    here = breaker()

    def broken_once() -> int:
        if database.attempts:
            return database()
        database.attempts += 1
        raise psycopg2.OperationalError("server closed the connection unexpectedly")

    assert here.connect(broken_once) == 2
    assert (here.away, here.outages) == (False, 0)


def test_one_that_is_refused_is_not(database: Database) -> None:
    away = breaker()
    database.error = psycopg2.OperationalError("Connection refused")
    fail(away, database)
    assert database.attempts == 1


def test_one_caller_probes_when_the_pause_is_over(clock: Clock, database: Database) -> None:
    away = breaker(retry_after=8.0)
    fail(away, database)
    for pause in (1.0, 2.0, 4.0, 8.0, 8.0):  # up to half of it less
        clock.now += 0.49 * pause
        with pytest.raises(DatabaseUnavailable):
            away.connect(database)
        clock.now += 0.52 * pause
        with pytest.raises(psycopg2.OperationalError):
            away.connect(database)
    assert (database.attempts, away.outages) == (7, 1)
    database.up = True
    clock.now += 8.01
    assert away.connect(database) == 8
    assert not away.away
    assert away.connect(database) == 9


def test_while_one_probes_the_others_are_told(database: Database, crowd: Callable[..., Future[Any]]) -> None:
    away = breaker(retry_after=0.1)
    fail(away, database)
    database.gate.clear()
    database.up = True

    def probes() -> bool:
        asked = crowd(away.connect, database)
        until(lambda: asked.done() or database.attempts == 3)
        return database.attempts == 3

    until(probes)
    with pytest.raises(DatabaseUnavailable):
        away.connect(database)
    database.gate.set()
    until(lambda: not away.away)


@pytest.mark.parametrize("error", [ValueError("no"), psycopg2.ProgrammingError("no such database")])
def test_an_error_that_is_not_the_networks_is_the_callers_alone(database: Database, error: Exception) -> None:
    here = breaker(hold=60.0)
    database.up, database.error = False, error
    for _ in range(2):
        with pytest.raises(type(error)):
            here.connect(database)
    assert not here.away
    assert database.attempts == 2


@pytest.mark.parametrize(
    "message",
    ['FATAL:  password authentication failed for user "app"', 'FATAL:  database "tenant" does not exist'],
)
def test_who_is_refused_by_name_is_not_told_that_the_database_is_away(database: Database, message: str) -> None:
    here = breaker(hold=60.0)
    database.up, database.error = False, psycopg2.OperationalError(message)
    with pytest.raises(psycopg2.OperationalError):
        here.connect(database)
    assert not here.away
    assert database.attempts == 1


def test_an_interrupt_of_a_probe_lets_the_next_one_probe(clock: Clock, database: Database) -> None:
    away = breaker()
    fail(away, database)
    clock.now += 10.0
    database.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        away.connect(database)
    database.up = True
    assert away.connect(database) == 4


def test_what_it_remembers_of_an_error_keeps_no_frame(clock: Clock, database: Database) -> None:
    away = breaker()
    fail(away, database)
    assert away._error is not None
    assert away._error.__traceback__ is None


def test_a_fork_begins_anew(clock: Clock, database: Database) -> None:
    away = breaker()
    fail(away, database)
    away.reset()
    assert not away.away
    database.up = True
    assert away.connect(database) == 3


def test_a_probe_that_hangs_does_not_keep_the_others_from_trying(
    clock: Clock, database: Database, crowd: Callable[..., Future[Any]]
) -> None:
    away = breaker()
    fail(away, database)
    clock.now += 10.0
    database.gate.clear()
    attempts = database.attempts
    hanging = crowd(away.connect, database)
    until(lambda: database.attempts == attempts + 1)
    with pytest.raises(DatabaseUnavailable):
        away.connect(database)
    clock.now += 5.0
    database.up = True
    assert away.connect(lambda: "well") == "well"
    assert not away.away
    database.gate.set()
    hanging.result(60.0)


def test_an_attempt_that_is_older_than_anothers_success_says_nothing(clock: Clock, database: Database) -> None:
    here = breaker()

    def late() -> int:
        clock.now += 5.0
        assert here.connect(lambda: 1) == 1
        raise psycopg2.OperationalError("timeout expired")

    with pytest.raises(psycopg2.OperationalError):
        here.connect(late)
    assert not here.away
