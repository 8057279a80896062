"""Connections that a request leaves checked out: told of once, and left alone."""

from __future__ import annotations

import gc
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, StaticPool, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, SingletonThreadPool
from werkzeug.test import Client, create_environ

from wsgi_dbguard import DBGuard, LeakWarning, guard, leaks
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MakeEngine = Callable[..., Engine]
ONE = text("select 1")


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: MakeEngine) -> Engine:
    return make_engine(postgres.url(), pool_size=2, max_overflow=0, pool_timeout=0.1)


def does(work: Callable[[], object]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        work()
        start_response("200 OK", [])
        return [b"done"]

    return app


def serve(app: WSGIApplication, path: str = "/") -> list[str]:
    """What is warned of while a request runs, from its beginning to its close."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LeakWarning)
        body: Any = app(create_environ(path), lambda *ignored: lambda data: None)
        assert list(body) == [b"done"]
        if hasattr(body, "close"):
            body.close()
    assert all(each.category is LeakWarning for each in caught)
    return [str(each.message) for each in caught]


def request(work: Callable[[], object], engine: Engine, path: str = "/", **settings: Any) -> list[str]:
    return serve(DBGuard(does(work), engine, **settings), path)


# One that is kept


@pytest.mark.parametrize("setting", ["warn", "heal"])
@pytest.mark.parametrize("way", ["connect", "raw_connection"])
def test_a_connection_that_stays_out_is_told_of_once_and_not_torn_away(
    engine: Engine, setting: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[Any] = []
    told = request(lambda: kept.append(getattr(engine, way)()), engine, "/listen", leaks=setting)
    assert told == [f"GET /listen left a connection of {guard(engine).name} checked out"]
    assert [each.getMessage() for each in caplog.records if each.name == "wsgi_dbguard.leaks"] == told
    assert {each.levelno for each in caplog.records if each.name == "wsgi_dbguard.leaks"} == {logging.ERROR}
    for _ in range(3):
        assert request(lambda: kept[0].cursor().execute("select 1") if way != "connect" else None, engine) == []
    if way == "connect":
        assert kept[0].scalar(ONE) == 1
    kept[0].close()
    assert request(lambda: engine.connect().close(), engine) == []


def test_without_the_guard_nobody_says_a_word(engine: Engine) -> None:
    kept: list[Connection] = []
    assert serve(does(lambda: kept.append(engine.connect()))) == []
    kept[0].close()


def test_off_says_nothing(engine: Engine) -> None:
    kept: list[Connection] = []
    assert request(lambda: kept.append(engine.connect()), engine, leaks="off") == []
    kept[0].close()


def test_raise_names_each_with_its_line(engine: Engine) -> None:
    kept: list[Connection] = []

    def first() -> None:
        kept.append(engine.connect())

    def work() -> None:
        first()
        kept.append(engine.connect())

    with pytest.raises(LeakWarning) as raised:
        request(work, engine, "/two", leaks="raise")
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    for line, function in zip(lines, ("first", "work"), strict=True):
        assert line.startswith(f"GET /two left a connection of {guard(engine).name} checked out, taken at {__file__}:")
        assert line.endswith(f"<locals>.{function}")
    assert [each.scalar(ONE) for each in kept] == [1, 1]
    for each in kept:
        each.close()


@pytest.mark.parametrize("setting", ["warn", "heal", "raise"])
def test_leak_stacks_tells_the_whole_way(engine: Engine, setting: str) -> None:
    kept: list[Connection] = []

    def inner() -> None:
        kept.append(engine.connect())

    def outer() -> None:
        inner()

    if setting == "raise":
        with pytest.raises(LeakWarning) as raised:
            request(outer, engine, leaks=setting, leak_stacks=True)
        message = str(raised.value)
    else:
        (message,) = request(outer, engine, leaks=setting, leak_stacks=True)
    assert message.index(".outer\n") < message.index("    inner()\n") < message.index("kept.append(engine.connect())")
    assert message.endswith("in raw_connection\n    return self.pool.connect()") or "sqlalchemy" in message
    kept[0].close()


def test_raise_names_the_line_where_a_session_began(engine: Engine) -> None:
    sessions = [Session(engine), Session(engine)]

    def work() -> None:
        for each in sessions:
            each.scalar(ONE)

    with pytest.raises(LeakWarning) as raised:
        request(work, engine, "/both", leaks="raise")
    lines = str(raised.value).splitlines()
    assert lines[0] == "GET /both left 2 Session(s) in a transaction"
    assert all(each.startswith(f"begun at {__file__}:") and each.endswith(".work") for each in lines[1:])
    assert len(lines) == 3
    assert not any(each.in_transaction() for each in sessions)
    with pytest.raises(LeakWarning, match=r"begun at\s+File .*\n(.*\n)*    each\.scalar\(ONE\)\n"):
        request(work, engine, leaks="raise", leak_stacks=True)


def test_a_session_that_is_told_of_is_not_told_of_twice(engine: Engine) -> None:
    with Session(engine) as session:
        (told,) = request(lambda: session.scalar(ONE), engine, leaks="warn")
        assert "1 Session(s)" in told
        assert session.in_transaction()


# No leaks


@pytest.mark.parametrize("guarded", [False, True])
def test_one_that_nothing_refers_to_any_more_goes_home(engine: Engine, guarded: bool) -> None:
    """SQLAlchemy's own doing."""

    def work() -> None:
        for _ in range(3):  # of two
            engine.raw_connection().cursor().execute("select 1")
        engine.connect()

    assert (request(work, engine) if guarded else serve(does(work))) == []
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("setting", ["warn", "heal"])
def test_a_connection_in_a_transaction_that_nothing_refers_to_is_told_of_and_collected(
    engine: Engine, setting: str
) -> None:
    """It refers to its transaction, which refers to it."""

    def work() -> None:
        engine.connect().execute(ONE)

    gc.collect()
    gc.disable()
    try:
        assert len(request(work, engine, leaks=setting)) == 1
        assert engine.pool.checkedout() == (setting == "warn")  # type: ignore[attr-defined]
    finally:
        gc.enable()
    gc.collect()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_streaming_body_may_use_its_connection_until_its_close(engine: Engine) -> None:
    class Body:
        def __init__(self) -> None:
            self.connection = engine.connect()

        def __iter__(self) -> Iterator[bytes]:
            self.connection.execute(ONE)
            yield b"done"

        def close(self) -> None:
            assert self.connection.scalar(ONE) == 1
            self.connection.close()

    def generator() -> Iterator[bytes]:
        with engine.connect() as connection:
            connection.execute(ONE)
            yield b"done"

    def answers(body: Callable[[], Iterable[bytes]]) -> WSGIApplication:
        return lambda environ, start_response: body()

    assert serve(DBGuard(answers(Body), engine)) == []
    assert serve(DBGuard(answers(generator), engine)) == []
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_body_that_does_not_close_it_is_told_of_at_its_close(engine: Engine) -> None:
    kept: list[Connection] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        kept.append(engine.connect())
        yield b"done"

    assert len(serve(DBGuard(app, engine))) == 1
    kept[0].close()


@pytest.mark.parametrize("pool", [StaticPool, SingletonThreadPool])
def test_pools_that_share_by_design_do_not_leak(postgres: PostgreSQL, make_engine: MakeEngine, pool: Any) -> None:
    engine = make_engine(postgres.url(), poolclass=pool)
    kept: list[Connection] = []
    assert request(lambda: kept.append(engine.connect()), engine) == []
    assert request(lambda: kept.append(engine.connect()), engine, leaks="raise") == []
    for each in kept:
        each.close()


def test_a_connection_of_its_own_each_time_can_leak_as_well(postgres: PostgreSQL, make_engine: MakeEngine) -> None:
    engine = make_engine(postgres.url(), poolclass=NullPool)
    kept: list[Connection] = []
    assert len(request(lambda: kept.append(engine.connect()), engine)) == 1
    kept[0].close()


def test_one_that_was_detached_is_told_of_while_it_is_open(engine: Engine) -> None:
    kept: list[Connection] = []

    def detach(close: str) -> None:
        connection = engine.connect()
        connection.detach()
        kept.append(connection)
        if close == "connection":
            connection.close()
        elif close == "driver's":
            connection.connection.dbapi_connection.close()  # type: ignore[union-attr]

    assert len(request(lambda: detach("not"), engine)) == 1
    assert kept[0].scalar(ONE) == 1
    kept[0].close()
    assert request(lambda: detach("connection"), engine) == []
    assert request(lambda: detach("driver's"), engine) == []
    kept.clear()


def test_one_that_a_thread_of_the_applications_own_took_is_its_own_affair(engine: Engine) -> None:
    taken, over = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def job() -> None:
        with engine.connect():
            taken.set()
            assert over.wait(60)

    def work() -> None:
        threads.append(threading.Thread(target=copy_context().run, args=(job,)))
        threads[0].start()
        assert taken.wait(60)

    assert request(work, engine) == []
    over.set()
    threads[0].join()


def test_the_owner_is_the_request_that_took_it_last(engine: Engine) -> None:
    """The first one's connection went home, and somebody else has it when the first one ends."""
    kept: list[Connection] = []

    def work() -> None:
        engine.connect().close()
        assert len(request(lambda: kept.append(engine.connect()), engine, "/inner")) == 1

    def outside() -> None:
        engine.connect().close()
        copy_context_free(lambda: kept.append(engine.connect()))

    assert request(work, engine, "/outer") == []
    kept.pop().close()
    assert request(outside, engine) == []
    kept.pop().close()


def copy_context_free(work: Callable[[], object]) -> None:
    """In a thread that knows of no request."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_the_applications_error_is_not_hidden(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    kept: list[Connection] = []

    def work() -> None:
        kept.append(engine.connect())
        raise LookupError

    with pytest.raises(LookupError):
        request(work, engine, leaks="raise")
    assert "checked out" in caplog.text
    kept[0].close()


# Who has them


@pytest.mark.parametrize("stacks", [False, True])
def test_holders_are_named(engine: Engine, stacks: bool) -> None:
    pool_guard = guard(engine)
    seen: list[list[str]] = []

    def work() -> None:
        with engine.connect():
            seen.append(leaks.holders(pool_guard))

    with engine.connect():
        request(work, engine, "/work", leak_stacks=stacks)
        (outside,) = leaks.holders(pool_guard)
    first, second = seen[0]
    assert first.startswith("no request, for ")
    assert outside.startswith("no request, for ")
    assert second.startswith("GET /work, for 0.")
    assert ("with engine.connect():" in second) is stacks
    assert leaks.holders(pool_guard) == []


def test_an_exhausted_pool_is_a_503_and_the_log_tells_who_has_it(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "_told", float("-inf"))
    kept: list[Connection] = []
    assert len(request(lambda: kept.append(engine.connect()), engine, "/kept")) == 1
    with pytest.raises(exc.TimeoutError), engine.connect():
        engine.connect()

    def work() -> None:
        with engine.connect(), engine.connect():
            pass

    client = Client(DBGuard(does(work), engine))
    for _ in range(3):
        with client.post("/more") as response:
            assert response.status_code == 503
    kept[0].close()
    with client.post("/more") as response:
        assert response.status_code == 200
    told = [each.getMessage() for each in caplog.records if "no connection was free" in each.getMessage()]
    assert "GET /kept (ended), for " in told[0]


def test_it_is_told_at_most_once_a_second(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    guard(engine)
    with engine.connect(), engine.connect():
        leaks._told = float("-inf")
        for _ in range(5):
            leaks.tell_holders()
        again = leaks._told
    assert again > 0
    assert len([each for each in caplog.records if "no connection was free" in each.getMessage()]) == 1
