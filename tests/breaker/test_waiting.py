"""The circuit breaker by itself, with `hold`: who waits for the database, for how long and in which order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import psycopg2
import pytest

from wsgi_dbguard import DatabaseUnavailable, GuardConfig
from wsgi_dbguard.request import Request, current

from .conftest import Clock, Database, breaker, fail, until


def test_who_waits_goes_on_as_if_nothing_had_happened(database: Database, crowd: Callable[..., Future[Any]]) -> None:
    away = breaker(hold=60.0, retry_after=0.1)
    database.up = False
    callers = [crowd(away.connect, database) for _ in range(20)]
    until(lambda: away.waiting + (away._probing is not None) == 20)
    database.up = True
    numbers = [caller.result(60.0) for caller in callers]
    assert len(set(numbers)) == 20
    assert (away.waiting, away.refused, away.away) == (0, 0, False)


def test_who_met_the_outage_itself_waits_too(database: Database, crowd: Callable[..., Future[Any]]) -> None:
    away = breaker(hold=60.0, retry_after=0.1)
    database.up = False
    caller = crowd(away.connect, database)
    until(lambda: database.attempts >= 4)
    database.up = True
    assert caller.result(60.0) >= 4


def test_they_are_let_go_in_the_order_in_which_they_came(database: Database, crowd: Callable[..., Future[Any]]) -> None:
    away = breaker(hold=600.0, retry_after=300.0)  # no probe comes in between
    database.up = False
    callers = [crowd(away.connect, database)]  # it is first, as it was before its attempt
    until(lambda: away.waiting == 1)
    for waiting in range(2, 8):
        callers.append(crowd(away.connect, database))
        until(partial(lambda count: away.waiting == count, waiting))
    database.up = True
    database.gate.clear()
    attempts = database.attempts
    away._reached()
    until(lambda: database.attempts == attempts + 2)
    assert away.waiting == 5
    database.gate.set()
    numbers = [caller.result(60.0) for caller in callers]
    assert max(numbers[:2]) < min(numbers[2:])


def test_patience_ends(database: Database) -> None:
    away = breaker(hold=0.3, retry_after=0.1)
    database.up = False
    with pytest.raises((psycopg2.OperationalError, DatabaseUnavailable)):
        away.connect(database)
    assert away.waiting == 0
    assert database.attempts > 1


def test_in_an_outage_older_than_hold_nobody_begins_to_wait(clock: Clock, database: Database) -> None:
    away = breaker(hold=0.0)
    fail(away, database)
    away.config = GuardConfig(hold=10.0, retry_after=30.0)
    away._next_probe = clock.now + 100.0
    clock.now += 10.0
    with pytest.raises(DatabaseUnavailable):
        away.connect(database)
    assert (away.held, away.refused) == (0, 1)


def test_a_request_has_one_hold_for_all_its_connections(clock: Clock, database: Database) -> None:
    away = breaker()
    fail(away, database)
    away.config = GuardConfig(hold=10.0)
    request = Request({"REQUEST_METHOD": "GET"})
    request.held = 10.0
    token = current.set(request)
    try:
        with pytest.raises(DatabaseUnavailable):
            away.connect(database)
    finally:
        current.reset(token)
    assert request.database_failure == "unavailable"
    assert away.held == 0


def test_who_probes_an_old_outage_does_not_wait_after_it(clock: Clock, database: Database) -> None:
    away = breaker()
    fail(away, database)
    away.config = GuardConfig(hold=10.0)
    clock.now += 20.0
    with pytest.raises(psycopg2.OperationalError):
        away.connect(database)
    assert (away.waiting, away.held) == (0, 0)


def test_who_may_wait_does_not_fail_by_chance_while_others_get_through() -> None:
    here = breaker(hold=60.0, retry_after=0.1)
    failures = iter(range(3))

    def unlucky() -> int:
        if next(failures, None) is None:
            return 1
        assert here.connect(lambda: 2) == 2
        raise psycopg2.OperationalError("server closed the connection unexpectedly")

    assert here.connect(unlucky) == 1
    assert not here.away


def test_who_waited_and_meets_the_next_outage_waits_on(database: Database, crowd: Callable[..., Future[Any]]) -> None:
    away = breaker(hold=600.0, retry_after=0.1)
    database.up = False
    caller = crowd(away.connect, database)
    until(lambda: away.waiting + (away._probing is not None) == 1)
    away._reached()  # for somebody else; the caller's own attempt fails
    attempts = database.attempts
    until(lambda: database.attempts > attempts + 2)
    database.up = True
    assert caller.result(60.0) > attempts


def test_those_who_are_let_go_and_reset_once_keep_nobody_waiting(
    database: Database, crowd: Callable[..., Future[Any]]
) -> None:
    both = threading.Barrier(2)
    resets = iter(range(2))

    def connect() -> int:
        if database.up and next(resets, None) is not None:
            both.wait(60.0)
            raise database.error
        return database()

    away = breaker(hold=600.0, retry_after=3000.0)  # no probe comes in between
    database.up = False
    callers = []
    for waiting in range(1, 5):
        callers.append(crowd(away.connect, connect))
        until(partial(lambda count: away.waiting == count, waiting))
    database.up = True
    away._reached()
    for caller in callers:
        caller.result(60.0)
    assert not away.away
