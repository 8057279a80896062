"""The circuit breaker by itself: who tries to connect, who is told at once, who waits and in which order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg2
import pytest
from sqlalchemy import create_engine, event, pool, text
from sqlalchemy.exc import OperationalError

from wsgi_dbguard import DatabaseUnavailable, GuardConfig, guard
from wsgi_dbguard import breaker as module
from wsgi_dbguard.breaker import Breaker
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.request import Request, current


class Clock:
    """`time.monotonic`, set by hand: for tests in which nobody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Database:
    """Opens numbered connections while it is up; counts the attempts."""

    def __init__(self) -> None:
        self.up = True
        self.error: BaseException = psycopg2.OperationalError("Connection reset")
        self.attempts = 0
        self.gate = threading.Event()  # an attempt ends when it is set
        self.gate.set()
        self.lock = threading.Lock()

    def __call__(self) -> int:
        with self.lock:
            self.attempts += 1
            number = self.attempts
        self.gate.wait(60.0)
        if not self.up:
            raise self.error
        return number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def crowd() -> Iterator[Callable[..., Future[Any]]]:
    """Runs a function in a thread of its own."""
    with ThreadPoolExecutor(32) as threads:
        yield threads.submit


def until(condition: Callable[[], bool]) -> None:
    wait_until(condition, timeout=60.0, what="the callers")


def breaker(**settings: Any) -> Breaker:
    return Breaker("the pool", GuardConfig(**settings))


def fail(breaker: Breaker, database: Database) -> None:
    database.up = False
    with pytest.raises(psycopg2.OperationalError):
        breaker.connect(database)
    assert breaker.away


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


def test_who_probes_an_old_outage_does_not_wait_after_it(clock: Clock, database: Database) -> None:
    away = breaker()
    fail(away, database)
    away.config = GuardConfig(hold=10.0)
    clock.now += 20.0
    with pytest.raises(psycopg2.OperationalError):
        away.connect(database)
    assert (away.waiting, away.held) == (0, 0)


def test_an_attempt_that_is_older_than_anothers_success_says_nothing(clock: Clock, database: Database) -> None:
    here = breaker()

    def late() -> int:
        clock.now += 5.0
        assert here.connect(lambda: 1) == 1
        raise psycopg2.OperationalError("timeout expired")

    with pytest.raises(psycopg2.OperationalError):
        here.connect(late)
    assert not here.away


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
