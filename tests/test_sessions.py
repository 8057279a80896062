"""Sessions that a request leaves in a transaction: rolled back, told of, or left alone, as the setting says."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, exc, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from werkzeug.test import Client, create_environ

from wsgi_dbguard import DBGuard, LeakWarning, SharedSessionWarning
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

KEY = "wsgi_dbguard.request"
View = Callable[[Any], object]


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "session_note"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    engine = make_engine(postgres.url(), pool_size=4)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()
    Base.metadata.drop_all(engine)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A global one."""
    with Session(engine) as session:
        yield session


def does(work: Callable[[], object]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        result = work()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(result).encode()]

    return app


def call(app: WSGIApplication, path: str = "/") -> bytes:
    body: Any = app(create_environ(path), lambda *args: lambda data: None)
    try:
        return b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()


def insert(session: Session) -> None:
    session.add(Note(name="left"))
    session.flush()


def test_without_the_guard_the_next_request_finds_the_transaction_of_the_last(session: Session) -> None:
    call(does(lambda: insert(session)))
    assert session.in_transaction()


def test_what_a_request_left_in_a_transaction_is_rolled_back(engine: Engine, session: Session) -> None:
    guard = DBGuard(does(lambda: insert(session)), engine)
    call(guard)
    assert not session.in_transaction()
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    assert session.scalar(text("select count(*) from session_note")) == 0


def test_what_was_added_and_never_flushed_does_not_go_with_the_next_request(engine: Engine, session: Session) -> None:
    call(DBGuard(does(lambda: session.add(Note(name="left"))), engine))
    session.commit()
    assert session.scalar(text("select count(*) from session_note")) == 0


def test_what_was_changed_and_never_flushed_does_not_go_with_the_next_request(
    engine: Engine, postgres: PostgreSQL
) -> None:
    postgres.query("insert into session_note values (1, 'old')")
    with Session(engine, expire_on_commit=False) as session:
        note = session.get_one(Note, 1)
        session.commit()
        call(DBGuard(does(lambda: setattr(note, "name", "left")), engine))
        session.commit()
    assert postgres.query("select name from session_note") == [("old",)]


def test_a_session_that_was_closed_is_no_leak(engine: Engine) -> None:
    def work() -> None:
        with Session(engine) as own:
            insert(own)
            own.commit()

    call(DBGuard(does(work), engine, leaks="raise"))


def test_an_invalid_session_is_healed(engine: Engine, session: Session, postgres: PostgreSQL) -> None:
    def lose() -> None:
        postgres.terminate(session.scalar(text("select pg_backend_pid()")) or 0)
        session.scalar(text("select 1"))

    with pytest.raises(exc.OperationalError):
        call(DBGuard(does(lose), engine, replay="off", statuses=False))
    assert session.scalar(text("select 1")) == 1


def test_objects_stay_attached_and_are_read_anew(engine: Engine, session: Session, postgres: PostgreSQL) -> None:
    postgres.query("insert into session_note values (1, 'old')")
    kept: list[Note] = []
    call(DBGuard(does(lambda: kept.append(session.get_one(Note, 1))), engine))
    (note,) = kept
    assert note in session
    postgres.query("update session_note set name = 'new'")
    assert note.name == "new"


def test_a_transaction_that_began_outside_any_request_is_found(engine: Engine, session: Session) -> None:
    session.scalar(text("select 1"))
    call(DBGuard(does(lambda: session.scalar(text("select 1"))), engine))
    assert not session.in_transaction()
    session.scalar(text("select 1"))
    call(DBGuard(does(lambda: insert(session)), engine))
    assert not session.in_transaction()


def test_a_transaction_that_began_before_the_first_guard_is_found(
    postgres: PostgreSQL, run_python: Callable[..., str]
) -> None:
    program = """
import sys
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

def app(environ, start_response):
    session.scalar(text("select 1"))
    return [b""]

engine = create_engine(sys.argv[1])
session = Session(engine)
session.scalar(text("select 1"))
from wsgi_dbguard import DBGuard
DBGuard(app, engine)({"REQUEST_METHOD": "GET"}, None)
print(session.in_transaction())
"""
    assert run_python(program, postgres.url()) == "False\n"


def test_one_that_became_invalid_outside_any_request_is_healed(
    engine: Engine, session: Session, postgres: PostgreSQL
) -> None:
    guard = DBGuard(does(lambda: session.scalar(text("select 1"))), engine)
    postgres.terminate(session.scalar(text("select pg_backend_pid()")) or 0)
    with pytest.raises(exc.OperationalError):
        session.scalar(text("select 1"))
    with pytest.raises(exc.PendingRollbackError):
        call(guard)
    assert call(guard) == b"1"


def test_one_that_a_failed_flush_made_invalid_outside_any_request_is_healed(engine: Engine, session: Session) -> None:
    guard = DBGuard(does(lambda: session.scalar(text("select 1"))), engine)
    session.add(Note(id=1))  # without a name
    with pytest.raises(exc.IntegrityError):
        session.flush()
    for _ in range(2):  # the first one tells that there is such a session, the second one that it uses it
        with pytest.raises(exc.PendingRollbackError):
            call(guard)
    assert call(guard) == b"1"


def test_a_session_that_the_request_did_not_use_is_left_alone(engine: Engine, session: Session) -> None:
    session.scalar(text("select 1"))
    call(DBGuard(does(lambda: None), engine))
    assert session.in_transaction()


# The modes


def test_off_does_nothing(engine: Engine, session: Session) -> None:
    call(DBGuard(does(lambda: insert(session)), engine, leaks="off"))
    assert session.in_transaction()


def test_warn_tells_and_leaves_it(engine: Engine, session: Session) -> None:
    with pytest.warns(LeakWarning, match="GET /left left 1 Session"):
        call(DBGuard(does(lambda: insert(session)), engine, leaks="warn"), "/left")
    assert session.in_transaction()


@pytest.mark.parametrize("lazy", [False, True])
def test_raise_raises_and_rolls_back(lazy: bool, engine: Engine, session: Session) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        insert(session)
        return iter([b"one"]) if lazy else [b"one"]

    environ = create_environ("/left")
    guard = DBGuard(app, engine, leaks="raise")
    if lazy:
        body: Any = guard(environ, lambda *args: lambda data: None)
        with pytest.raises(LeakWarning, match="GET /left left 1 Session"):
            body.close()
    else:
        with pytest.raises(LeakWarning, match="GET /left left 1 Session"):
            guard(environ, lambda *args: lambda data: None)
    assert not session.in_transaction()
    assert environ[KEY].ended is not None


def test_raise_does_not_hide_the_applications_error(engine: Engine, session: Session) -> None:
    def work() -> None:
        insert(session)
        raise LookupError

    with pytest.raises(LookupError):
        call(DBGuard(does(work), engine, leaks="raise"))
    assert not session.in_transaction()


# Streaming


def test_a_body_may_use_its_session_until_its_close(engine: Engine, session: Session) -> None:
    order: list[object] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            insert(session)
            for _ in range(3):
                yield str(session.scalar(text("select count(*) from session_note"))).encode()

        def close(self) -> None:
            order.append(session.scalar(text("select count(*) from session_note")))

    body: Any = DBGuard(lambda environ, start_response: Body(), engine)(
        create_environ(), lambda *args: lambda data: None
    )
    assert next(body) == b"1"
    assert session.in_transaction()
    assert list(body) == [b"1", b"1"]
    body.close()
    assert order == [1]
    assert not session.in_transaction()


# Two at once


def meet(engine: Engine, session: Session, **settings: Any) -> list[Warning]:
    """Two requests in two threads that use one session, the second one within the first one's time: the warnings."""
    used, done = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def slow() -> None:
        session.scalar(text("select 1"))
        used.set()
        assert done.wait(60)

    def run() -> None:
        try:
            call(DBGuard(does(slow), engine, **settings), "/slow")
        except BaseException as error:
            failures.append(error)
            used.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert used.wait(60)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(DBGuard(does(lambda: insert(session)), engine, **settings), "/quick")
        held = session.in_transaction()
        call(DBGuard(does(lambda: session.scalar(text("select 1"))), engine, **settings), "/again")
    done.set()
    thread.join()
    assert failures == []
    assert held
    return [each.message for each in caught if isinstance(each.message, Warning)]


def test_a_session_of_two_running_requests_is_left_alone_and_told_once(
    engine: Engine, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = meet(engine, session)
    assert isinstance(warning, SharedSessionWarning)
    assert "GET /quick and GET /slow" in str(warning)
    assert str(warning) in caplog.text
    assert not session.in_transaction()  # the last one of them has left
    assert meet(engine, session) == []


def test_requests_that_follow_each_other_may_share_one(engine: Engine, session: Session) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            call(DBGuard(does(lambda: session.scalar(text("select 1"))), engine))


def test_a_subrequest_may_share_that_of_the_request_around_it(engine: Engine) -> None:
    registry = scoped_session(sessionmaker(engine))
    left: list[bool] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/sub":
            registry.scalar(text("select 1"))
            return [b"sub"]
        insert(registry())
        with Client(guard).get("/sub"):
            left.append(registry().in_transaction())
            return [str(registry.scalar(text("select count(*) from session_note"))).encode()]

    guard = DBGuard(app, engine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(guard) == b"1"
    assert left == [True]
    assert not registry().in_transaction()
    registry.remove()


def test_a_response_that_was_dropped_without_close_is_no_user_any_more(engine: Engine, session: Session) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        session.scalar(text("select 1"))
        yield b"one"

    guard = DBGuard(app, engine)
    guard(create_environ(), lambda *args: lambda data: None)
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(guard)
    assert not session.in_transaction()


def test_a_thread_that_outlives_its_request_keeps_nothing(engine: Engine, session: Session) -> None:
    contexts: list[Any] = []
    call(DBGuard(does(lambda: contexts.append(copy_context())), engine))
    contexts[0].run(lambda: session.scalar(text("select 1")))  # it goes on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(DBGuard(does(lambda: session.scalar(text("select 1"))), engine))
    assert not session.in_transaction()


def test_a_thread_of_the_application_that_outlives_the_request_keeps_its_transaction(engine: Engine) -> None:
    """In a copy of the request's context, as asyncio.to_thread makes it, it would count as part of the request."""
    flushed, ended = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def job(session: Session) -> None:
        session.add(Note(id=77, name="of a thread"))
        session.flush()
        flushed.set()
        assert ended.wait(60)
        session.commit()

    def view() -> str:
        thread = threading.Thread(target=copy_context().run, args=(job, Session(engine)))
        thread.start()
        threads.append(thread)
        assert flushed.wait(60)
        return "started"

    client = Client(DBGuard(does(view), engine))
    with client.get("/") as response:
        assert response.status_code == 200
    ended.set()
    threads[0].join()
    with Session(engine) as session:
        assert session.get(Note, 77) is not None
