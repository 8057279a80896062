"""One process, asked by Prometheus: every figure is the truth, through all that can happen to connections."""

from __future__ import annotations

import gc
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine, create_engine, exc, text
from sqlalchemy.pool import NullPool, StaticPool

from wsgi_dbguard import DBGuard, LeakWarning, guard, tally
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.metrics import instruments, prometheus
from wsgi_dbguard.registry import links

MakeEngine = Callable[..., Engine]
Page = Callable[[], dict[str, float]]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[CollectorRegistry]:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    tally.reset()
    registry = CollectorRegistry()
    prometheus.install(registry)
    yield registry
    prometheus.uninstall()


@pytest.fixture
def page(registry: CollectorRegistry, parse: Callable[[str], dict[str, float]]) -> Page:
    return lambda: parse(generate_latest(registry).decode())


@pytest.fixture
def engine(registry: CollectorRegistry, postgres: PostgreSQL, make_engine: MakeEngine) -> Engine:
    engine = make_engine(postgres.url(application_name="measured"), pool_size=3, max_overflow=2, pool_timeout=0.05)
    guard(engine)
    return engine


def test_connections_are_those_that_the_server_has(
    engine: Engine, page: Page, postgres: PostgreSQL, open_at: Callable[[PostgreSQL], int]
) -> None:
    def has(count: int) -> bool:
        return open_at(postgres) == count

    with ExitStack() as stack:
        for count in (1, 2, 3, 4):
            stack.enter_context(engine.connect())
            told = page()
            assert told["db_client_connection_count used"] == count
            # Those of the test before may take a moment to go.
            wait_until(partial(has, count), timeout=60, what=f"{count} connections")
            assert told["db_client_connection_count idle"] == 0
    # One was overflow.
    assert page()["db_client_connection_count idle"] == 3
    assert page()["db_client_connection_count used"] == 0
    wait_until(lambda: open_at(postgres) == 3, timeout=60, what="the end of one")
    assert page()["db_client_connection_max"] == 5
    assert page()["db_client_connection_idle_max"] == 3


def test_gauges_go_with_dispose_and_counters_stay(
    engine: Engine, page: Page, postgres: PostgreSQL, open_at: Callable[[PostgreSQL], int]
) -> None:
    for _ in range(5):
        engine.raw_connection().close()
    engine.dispose()
    told = page()
    assert told["db_client_connection_count"] == 0
    assert told["wsgi_dbguard_checkouts_total"] == 5
    wait_until(lambda: open_at(postgres) == 0, timeout=60, what="the end of all")
    engine.raw_connection().close()
    told = page()
    assert told["db_client_connection_count idle"] == 1
    assert told["wsgi_dbguard_checkouts_total"] == told["db_client_connection_wait_time_seconds_count"] == 6
    assert told["wsgi_dbguard_connects_total"] == told["db_client_connection_create_time_seconds_count"] == 2


def test_times_are_counted_in_their_buckets(engine: Engine, page: Page) -> None:
    for seconds in (0.0, 0.0, 0.06):
        with engine.connect() as connection:
            connection.execute(text("select pg_sleep(:seconds)"), {"seconds": seconds})
    told = page()
    assert told["db_client_connection_use_time_seconds_count"] == 3
    assert told["db_client_connection_use_time_seconds_sum"] > 0.06
    assert told["db_client_connection_use_time_seconds_bucket 0.05"] <= 2
    assert told["db_client_connection_use_time_seconds_bucket +Inf"] == 3


def test_who_waits_for_a_connection_is_pending_and_then_timed_out(engine: Engine, page: Page) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(engine.connect())
        seen: list[float] = []
        ended = threading.Event()

        def look() -> None:
            while not ended.is_set() and not seen:
                seen.extend(each for each in [page()["db_client_connection_pending_requests"]] if each)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            # Each waits for 50 ms, until it was seen to.
            for number in range(1, 100):
                with pytest.raises(exc.TimeoutError):
                    engine.connect()
                assert page()["db_client_connection_timeouts_total"] == number
                if seen:
                    break
        finally:
            ended.set()
            watcher.join(60)
    assert seen == [1]
    assert page()["db_client_connection_pending_requests"] == 0
    assert page()["db_client_connection_wait_time_seconds_count"] == 5


def test_checks_and_retirements_have_their_tier_result_and_cause(
    postgres: PostgreSQL, page: Page, make_engine: MakeEngine, fill: Callable[[Engine, int], list[int]]
) -> None:
    engine = make_engine(postgres.url())
    guard(engine, ping_after=0.0)
    fill(engine, 2)
    fill(engine, 2)
    told = page()
    assert told["wsgi_dbguard_checks_total alive ping"] == told["wsgi_dbguard_checks_total alive socket"] == 2
    assert told["wsgi_dbguard_retired_total"] == 0
    postgres.terminate(*fill(engine, 2))
    fill(engine, 2)
    told = page()
    assert told["wsgi_dbguard_checks_total dead socket"] == told["wsgi_dbguard_retired_total dead"] == 1
    assert told["wsgi_dbguard_retired_total condemned"] == 1
    assert told["wsgi_dbguard_invalidations_total"] == 1


def test_connections_that_housekeeping_closed_are_retired_by_cause(
    postgres: PostgreSQL, page: Page, make_engine: MakeEngine, fill: Callable[[Engine, int], list[int]]
) -> None:
    engine = make_engine(postgres.url())
    guard(engine, idle_timeout=0.1)
    fill(engine, 3)

    def retired() -> bool:
        told = page()
        return told["wsgi_dbguard_retired_total idle_timeout"] == 3 and told["db_client_connection_count"] == 0

    wait_until(retired, timeout=60, what="retirement")


def test_another_engine_of_the_same_name_carries_the_counters_on(
    postgres: PostgreSQL, page: Page, make_engine: MakeEngine
) -> None:
    for turn in range(1, 4):
        engine = create_engine(postgres.url())
        guard(engine)
        engine.raw_connection().close()
        told = page()
        assert told["wsgi_dbguard_checkouts_total"] == told["wsgi_dbguard_connects_total"] == turn
        assert told["db_client_connection_count"] == 1
        engine.dispose()
        del engine
        gc.collect()
        told = page()
        assert told["wsgi_dbguard_checkouts_total"] == turn
        assert told["db_client_connection_count"] == told["db_client_connection_idle_max"] == 0


def test_a_database_that_is_away_is_told(page: Page, make_engine: MakeEngine) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        engine = make_engine(f"postgresql+psycopg2://nobody@127.0.0.1:{nobody.getsockname()[1]}/nothing")
        guard(engine, retry_after=600.0)
        for _ in range(3):
            with pytest.raises(exc.OperationalError):
                engine.connect()
    told = page()
    assert told["wsgi_dbguard_away"] == told["wsgi_dbguard_outages_total"] == 1
    assert told["wsgi_dbguard_refusals_total"] == 2
    assert told["db_client_connection_count"] == 0


def request(app: Any) -> list[str]:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    statuses: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        statuses.append(status)

    body = app(environ, start_response)
    try:
        list(body)
    finally:
        getattr(body, "close", list)()
    return statuses


def test_replays_are_told_by_outcome(engine: Engine, page: Page, postgres: PostgreSQL) -> None:
    attempts = 0

    def app(environ: Any, start_response: Any) -> list[bytes]:
        nonlocal attempts
        attempts += 1
        with engine.connect() as connection:
            if attempts not in (2, 5):
                postgres.terminate(connection.scalar(text("select pg_backend_pid()")) or 0)
            connection.execute(text("select 1"))
        start_response("200 OK", [])
        return [b""]

    guarded = DBGuard(app, engine)
    assert request(guarded) == ["200 OK"]
    assert page()["wsgi_dbguard_replays_total succeeded"] == 1
    assert request(guarded)[0].startswith("503")
    told = page()
    assert (told["wsgi_dbguard_replays_total succeeded"], told["wsgi_dbguard_replays_total failed"]) == (1, 1)


def test_leaks_are_told_by_kind(engine: Engine, page: Page) -> None:
    kept = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        kept.append(engine.connect())
        start_response("200 OK", [])
        return [b""]

    with pytest.warns(LeakWarning, match="left a connection"):
        request(DBGuard(app, engine))
    assert page()["wsgi_dbguard_leaks_total connection"] == 1
    assert page()["wsgi_dbguard_leaks_total session"] == 0
    kept.pop().close()


def test_pools_of_other_kinds_tell_their_limits(postgres: PostgreSQL, page: Page, make_engine: MakeEngine) -> None:
    for kind, most, idle in ((NullPool, 0, 0), (StaticPool, 1, 1)):
        engine = make_engine(postgres.url(), poolclass=kind)
        guard(engine)
        engine.raw_connection().close()
        told = page()
        assert (told["db_client_connection_max"], told["db_client_connection_idle_max"]) == (most, idle)


def test_pools_are_told_apart_and_their_names_have_no_secrets(
    postgres: PostgreSQL, registry: CollectorRegistry, make_engine: MakeEngine
) -> None:
    for options in ({}, {}, {"pool_logging_name": "orders"}):
        # By another name than in other tests, whose engines may still be there.
        url = postgres.url_through("localhost", postgres.port, options="-c geqo=on")
        engine = make_engine(url, **options)
        guard(engine)
        engine.raw_connection().close()
    text = generate_latest(registry).decode()
    names = {line.partition('name="')[2].partition('"')[0] for line in text.splitlines() if 'pool_name="' in line}
    address = f"localhost:{postgres.port}/dbguard"
    assert names == {address, f"{address} #2", "orders"}


def test_an_engine_that_is_not_guarded_or_not_used_has_no_figures(
    postgres: PostgreSQL, page: Page, make_engine: MakeEngine
) -> None:
    unused = make_engine(postgres.url())
    guard(unused)
    make_engine(postgres.url()).raw_connection().close()
    assert "db_client_connection_count" not in page()


def test_an_engine_that_is_let_go_is_not_kept(postgres: PostgreSQL, page: Page) -> None:
    engine = create_engine(postgres.url())
    guard(engine)
    engine.raw_connection().close()
    assert page()["db_client_connection_count"] == 1
    engine.dispose()
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    assert "db_client_connection_count" not in page()


def test_what_is_installed_twice_is_there_once_and_uninstalled_leaves_nothing(engine: Engine, page: Page) -> None:
    prometheus.install()
    engine.raw_connection().close()
    assert page()["db_client_connection_count"] == 1
    prometheus.uninstall()
    try:
        assert "connect" not in vars(engine.pool)
        assert page() == {}
        engine.raw_connection().close()
        engine.dispose()
        assert "connect" not in vars(engine.pool)
    finally:
        prometheus.install(CollectorRegistry())


def test_the_page_is_a_wsgi_application(engine: Engine) -> None:
    engine.raw_connection().close()
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    body = b"".join(prometheus.application(environ, lambda status, headers, exc_info=None: list))
    assert b"wsgi_dbguard_checkouts_total" in body


def test_every_name_is_a_legal_one_of_prometheus() -> None:
    names = [prometheus.metric_name(each) for each in instruments.INSTRUMENTS]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalnum() for name in names)
    assert "db_client_connection_wait_time_seconds" in names
    assert "db_client_connection_timeouts_total" in names


def test_a_forked_child_starts_from_zero(
    engine: Engine, registry: CollectorRegistry, parse: Callable[[str], dict[str, float]]
) -> None:
    for _ in range(3):
        engine.raw_connection().close()
    inherited = sum(not link.in_memory for link in links)  # other tests may have left some, and a fork cuts all
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            first = generate_latest(registry)
            engine.raw_connection().close()
            os.write(theirs, first + b"\0" + generate_latest(registry))
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        before, _, after = pipe.read().decode().partition("\0")
    os.waitpid(child, 0)
    assert "db_client_connection_count" not in parse(before)
    assert parse(before)["wsgi_dbguard_severed_total"] == inherited >= 1
    told = parse(after)
    assert told["db_client_connection_count"] == told["wsgi_dbguard_connects_total"] == 1
    assert told["wsgi_dbguard_checkouts_total"] == 1
    for name in ("wait", "use", "create"):
        assert told[f"db_client_connection_{name}_time_seconds_count"] == 1
    assert parse(generate_latest(registry).decode())["wsgi_dbguard_checkouts_total"] == 3
