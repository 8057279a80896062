"""Readiness: the truth about each database, at one query a second, and never at the expense of a request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.pool import AssertionPool, NullPool
from werkzeug.test import Client

from wsgi_dbguard import DBGuard, guard, registry
from wsgi_dbguard.guards import guards
from wsgi_dbguard.health import readiness
from wsgi_dbguard.health.readiness import AWAY, READY, SILENT, Readiness, away_for
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy

NAME = "readiness"


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQL]:
    """One that is stopped and started."""
    try:
        server = PostgreSQL(settings={"log_statement": "all"})
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture
def running(database: PostgreSQL) -> Iterator[PostgreSQL]:
    yield database
    if not database.running:
        database.start()


@pytest.fixture
def engine(running: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(running.url(application_name=NAME))


def judge(*engines: Engine, **settings: Any) -> Readiness:
    made = [guard(engine, **settings) for engine in engines]
    return Readiness(lambda: made)


def fresh(judgement: Readiness, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its state now, whatever was said less than a second ago."""
    monkeypatch.setattr(readiness, "_PAUSE", 0.0)
    return judgement.state()


def statements(database: PostgreSQL) -> int:
    return database.log.read_text().count("statement: ")


def test_it_is_ready_away_and_ready_again_without_any_request(
    engine: Engine, running: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    judgement = judge(engine)
    assert fresh(judgement, monkeypatch) == READY
    running.stop()
    assert fresh(judgement, monkeypatch) == AWAY
    running.start()
    wait_until(lambda: judgement.state() == READY, timeout=30, what="ready again")


def test_the_probes_are_no_refused_requests_and_nobody_is_held(
    engine: Engine, running: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    judgement = judge(engine, hold=60.0)
    running.stop()
    for _ in range(20):
        assert fresh(judgement, monkeypatch) == AWAY  # now, and not after `hold`
    stats = guard(engine).stats()
    assert (stats["refused"], stats["held"], stats["outages"]) == (0, 0, 1)


def test_a_pool_whose_only_connection_is_in_use_is_not_waited_for(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running.url(), pool_size=1, max_overflow=0, pool_timeout=300)
    judgement = judge(engine)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        before = guard(engine).stats()["checkouts"]
        assert fresh(judgement, monkeypatch) == READY
        assert guard(engine).stats()["checkouts"] == before


def test_the_last_place_is_never_taken(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running.url(), pool_size=1, max_overflow=1)
    judgement = judge(engine)
    with engine.connect():
        assert fresh(judgement, monkeypatch) == READY
        assert guard(engine).stats()["checkouts"] == 1
    assert fresh(judgement, monkeypatch) == READY
    assert guard(engine).stats()["checkouts"] == 2  # now there are two


def test_places_that_others_take_meanwhile_are_not_waited_for(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running.url(), pool_size=1, max_overflow=1, pool_timeout=300)
    judgement = judge(engine)
    left = iter([2])  # as it was; then as it is
    real = readiness._places_left
    monkeypatch.setattr(readiness, "_places_left", lambda pool: next(left, None) or real(pool))
    with engine.connect(), engine.connect():
        assert fresh(judgement, monkeypatch) == READY


def test_the_last_place_is_given_back_at_once(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running.url(), pool_size=2, max_overflow=0)
    judgement = judge(engine)
    with engine.connect() as one:
        with engine.connect():
            pass
        (idle,) = (link for link in guard(engine).links() if not link.in_use)
        asked, used = statements(running), idle.used
        left = iter([2])
        real = readiness._places_left
        monkeypatch.setattr(readiness, "_places_left", lambda pool: next(left, None) or real(pool))
        assert fresh(judgement, monkeypatch) == READY
        assert (statements(running), idle.used) == (asked, used)
        one.execute(text("SELECT 1"))


def test_a_pool_that_allows_one_at_a_time_is_never_asked_for_it(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running.url(), poolclass=AssertionPool)
    judgement = judge(engine)
    for _ in range(2):
        assert fresh(judgement, monkeypatch) == READY
        assert guard(engine).stats()["checkouts"] == 0
    with engine.connect():
        assert fresh(judgement, monkeypatch) == READY
    assert fresh(judgement, monkeypatch) == READY
    assert guard(engine).stats()["checkouts"] == 1
    running.stop()
    assert fresh(judgement, monkeypatch) == AWAY


def test_a_pool_of_one_place_is_left_alone_and_judged_by_its_socket(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running.url(), pool_size=1, max_overflow=0)
    judgement = judge(engine)
    assert fresh(judgement, monkeypatch) == READY  # nothing was open: one was opened beside the pool
    with engine.connect():
        pass
    assert fresh(judgement, monkeypatch) == READY
    assert guard(engine).stats()["checkouts"] == 1
    running.stop()
    assert fresh(judgement, monkeypatch) == AWAY
    running.start()
    wait_until(lambda: fresh(judgement, monkeypatch) == READY, timeout=30, what="ready again")
    assert guard(engine).stats()["checkouts"] == 1


def test_many_askers_are_one_query_a_second(engine: Engine, running: PostgreSQL) -> None:
    judgement = judge(engine)
    judgement.state()  # the first connection, and what SQLAlchemy asks on it
    before, began = statements(running), monotonic()
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.extend(judgement.state() for _ in range(50))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [READY] * 400
    assert statements(running) - before <= monotonic() - began + 1


def test_a_server_that_does_not_answer_costs_one_ping_timeout(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(running.host, running.port) as proxy:
        engine = make_engine(running.url_through(proxy.host, proxy.port))
        judgement = judge(engine, ping_timeout=0.5, connect_timeout=2.0)
        assert fresh(judgement, monkeypatch) == READY
        proxy.blackhole()
        assert fresh(judgement, monkeypatch) in (SILENT, AWAY)
        wait_until(lambda: judgement.state() == AWAY, timeout=60, what="the end of the look")


def test_a_look_does_not_keep_a_connection_from_being_idle(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    judgement = judge(engine)
    with engine.connect():
        pass
    (link,) = guard(engine).links()
    link.used -= 30
    used = link.used
    assert fresh(judgement, monkeypatch) == READY
    assert link.used == used


def test_a_replica_that_is_away_is_none_of_its_business(
    engine: Engine, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = make_engine("postgresql+psycopg2://127.0.0.1:1/replica")
    judgement = judge(engine, replica)
    assert fresh(judgement, monkeypatch) == AWAY
    registry.standbys[replica.dialect] = 1.0
    assert fresh(judgement, monkeypatch) == READY


def test_what_has_no_server_is_ready(make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh(judge(make_engine("sqlite://")), monkeypatch) == READY
    assert fresh(Readiness(list), monkeypatch) == READY


def test_a_refused_password_is_not_ready(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running.url().replace("dbguard@", "nobody-known@"))
    assert fresh(judge(engine), monkeypatch) == AWAY


def test_what_it_finds_away_is_so_on_the_page_though_requests_have_not_told(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("postgresql+psycopg2://127.0.0.1:1/nowhere", pool_size=1, max_overflow=1)
    refusal = psycopg2.OperationalError('FATAL:  password authentication failed for user "a"')
    answering = threading.Event()

    @event.listens_for(engine, "do_connect")
    def connect(*_: object) -> Any:
        raise refusal

    ours, judgement = guard(engine, ping_timeout=0.1), judge(engine)
    assert away_for(ours) is None
    # On a busy machine a look may take longer than a ping, and is silent until then.
    wait_until(lambda: fresh(judgement, monkeypatch) == AWAY, timeout=30, what="the refusal")
    wait_until(lambda: away_for(ours) is not None, timeout=30, what="more than a ping may take")
    assert not ours.breaker.away  # a password that is refused is no outage
    monkeypatch.setattr(readiness, "_ask", lambda *_: True)
    wait_until(lambda: fresh(judgement, monkeypatch) == READY, timeout=30, what="ready")
    assert away_for(ours) is None
    monkeypatch.setattr(readiness, "_ask", lambda *_: answering.wait(60))
    assert fresh(judgement, monkeypatch) == SILENT
    wait_until(lambda: away_for(ours) is not None, timeout=30, what="a look that takes too long")
    answering.set()
    wait_until(lambda: away_for(ours) is None, timeout=30, what="its answer")


def test_between_two_engines_other_greenlets_have_their_turn(run_python: Callable[..., str]) -> None:
    program = """
from wsgi_dbguard.health import readiness
from gevent import monkey
monkey.patch_all()
import gevent
from sqlalchemy import create_engine
from wsgi_dbguard import guard

signs = []

def give_signs():
    while True:
        signs.append(1)
        gevent.sleep(0.01)

def block(pool_guard):
    seen.append(len(signs))
    monkey.get_original("time", "sleep")(0.1)
    return readiness.READY

seen = []
readiness._look_at = block
engines = [create_engine(f"postgresql+psycopg2://127.0.0.1:1/{name}") for name in "abc"]
gevent.spawn(give_signs)
guards = [guard(engine) for engine in engines]
print(readiness.Readiness(lambda: guards).state(), seen == sorted(set(seen)))
"""
    assert run_python(program) == "ready True\n"


def test_without_a_pool_it_asks_and_leaves_nothing_open(
    running: PostgreSQL, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running.url(), poolclass=NullPool)
    assert fresh(judge(engine), monkeypatch) == READY
    assert guard(engine).stats()["connections"] == 0
    assert guard(engine) in guards()


def test_the_page_looks_as_well_and_waits_for_nothing(running: PostgreSQL, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(running.url())
    application = DBGuard(lambda environ, start_response: [], engine, health="/-/db")
    running.stop()
    Client(application).get("/-/db/", buffered=True)
    wait_until(lambda: guard(engine).stats()["away"], timeout=30, what="the look")
    assert "Database away" in Client(application).get("/-/db/", buffered=True).text
