"""What a request leaves on its connection by SQL, in PostgreSQL: the next user does not meet it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard, guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Work = Callable[[], object]
PID = text("select pg_backend_pid()")


@pytest.fixture(params=["psycopg2", "psycopg", "pg8000"])
def engine(request: pytest.FixtureRequest, postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    """Of one connection, that has been used."""
    pytest.importorskip(request.param)
    engine = make_engine(postgres.url(request.param), pool_size=1, max_overflow=0)
    with engine.connect():
        return engine


def request(work: Work, *engines: Engine, **settings: Any) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        work()
        start_response("200 OK", [])
        return [b""]

    DBGuard(app, *engines, **settings)(create_environ("/"), lambda *ignored: lambda data: None)


def executes(engine: Engine, *statements: str, commit: bool = True) -> Work:
    """A request's work."""

    def work() -> None:
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
            if commit:
                connection.commit()

    return work


def ask(engine: Engine, question: str) -> Any:
    with engine.connect() as connection:
        return connection.exec_driver_sql(question).scalar()


LEFTOVERS = [
    (["set search_path to pg_temp"], "show search_path"),
    (["set statement_timeout = 4321"], "show statement_timeout"),
    (["set time zone 'Asia/Tokyo'"], "show timezone"),
    (["set app.tenant = '7'"], "select current_setting('app.tenant', true) = '7'"),
    (["select set_config('app.tenant', '7', false)"], "select current_setting('app.tenant', true) = '7'"),
    (["set session characteristics as transaction read only"], "show default_transaction_read_only"),
    (["set session characteristics as transaction isolation level serializable"], "show transaction_isolation"),
    (["set role pg_monitor"], "select current_user"),
    (["create temp table mine (x int)"], "select to_regclass('mine')::text"),
    (["update pg_settings set setting = '4321' where name = 'statement_timeout'"], "show statement_timeout"),
    (["listen jobs"], "select string_agg(c, ',') from pg_listening_channels() c"),
    (["prepare mine as select 1"], "select count(*) from pg_prepared_statements where name = 'mine'"),
    (
        ["select pg_advisory_lock(42)"],
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    ),
    (["select 1; set statement_timeout = 4321 -- " + "x" * 5000], "show statement_timeout"),
    (["select '/*'; set statement_timeout = 4321; select '*/'"], "show statement_timeout"),
    (["select \"set_config\" /**/ ('statement_timeout', '4321', false)"], "show statement_timeout"),
    (["reset all"], "show work_mem"),
]


@pytest.fixture
def listener(engine: Engine) -> None:
    """The user's own, which sets what every connection is to have."""

    @event.listens_for(engine, "connect")
    def configure(connection: Any, entry: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("set work_mem = '5MB'")
        connection.commit()
        cursor.close()

    engine.dispose()


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize(
    ("statements", "question"), LEFTOVERS, ids=lambda each: each[0][:80] if isinstance(each, list) else ""
)
def test_what_a_request_leaves_is_gone_for_the_next_one(engine: Engine, statements: list[str], question: str) -> None:
    clean = ask(engine, question)
    executes(engine, *statements)()
    assert ask(engine, question) != clean  # nothing guards it
    engine.dispose()
    assert ask(engine, question) == clean
    for _ in range(3):
        request(executes(engine, *statements), engine)
        assert ask(engine, question) in (clean, False if clean is None else clean)
    assert ask(engine, "show work_mem") == "5MB"


def test_a_setting_costs_one_reconnect_and_is_put_back_from_then_on(engine: Engine) -> None:
    pool_guard = guard(engine)
    for _ in range(4):
        request(executes(engine, "set statement_timeout = 1234"), engine)
        assert ask(engine, "show statement_timeout") == "0"
    stats = pool_guard.stats()
    assert (stats["replaced"], stats["restored"]) == ({"changed": 1}, 3)
    # Put back as the server's own, not as the session's: a reload still reaches it.
    assert ask(engine, "select source from pg_settings where name = 'statement_timeout'") == "default"
    request(executes(engine, "set lock_timeout = 1234", "set statement_timeout = 4321"), engine)
    assert ask(engine, "show lock_timeout") == "0"
    request(executes(engine, "set lock_timeout = 1234", "set statement_timeout = 4321"), engine)
    assert ask(engine, "show lock_timeout") == ask(engine, "show statement_timeout") == "0"
    stats = pool_guard.stats()
    assert (stats["replaced"], stats["restored"]) == ({"changed": 2}, 4)


def test_what_the_listener_set_is_what_comes_back(engine: Engine, listener: None) -> None:
    for _ in range(3):
        request(executes(engine, "set work_mem = '7MB'"), engine)
        assert ask(engine, "show work_mem") == "5MB"
        request(executes(engine, "reset work_mem"), engine)
        assert ask(engine, "show work_mem") == "5MB"


UNDONE = [
    ["set statement_timeout = 1234"],  # rolled back
    ["set local statement_timeout = 1234"],
    ["select set_config('statement_timeout', '1234', true)"],
    ["set transaction read only"],
    ["create temp table mine (x int)"],
    ["create temp table mine (x int) on commit drop"],
    ["select pg_advisory_lock(42)", "select pg_advisory_unlock(42)"],
    ["select pg_advisory_lock(hashtext('job'))", "select pg_advisory_unlock(hashtext('job'))"],
    ["select pg_advisory_lock(42), pg_advisory_lock(43)", "select pg_advisory_unlock_all()"],
    ["select pg_advisory_xact_lock(42)"],
    ["prepare mine as select 1", "deallocate mine"],
    ["select 1", "create temporary table other (x int)", "drop table other"],
    ["listen jobs", "unlisten jobs"],
    ["savepoint s", "create temporary table other (x int)", "drop table other", "release savepoint s"],
]


@pytest.mark.parametrize("statements", UNDONE, ids=lambda each: each[0])
def test_what_a_request_undoes_costs_nothing(engine: Engine, statements: list[str]) -> None:
    pool_guard = guard(engine)
    pid = ask(engine, "select pg_backend_pid()")
    for _ in range(2):
        request(executes(engine, *statements, commit=len(statements) > 1), engine)
        assert ask(engine, "select pg_backend_pid()") == pid
    assert pool_guard.stats()["restored"] == 0


LOCKS = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
LOCKED_TWICE = [
    ["select pg_advisory_lock(42)"] * 2 + ["select pg_advisory_unlock(42)"],
    ["select pg_advisory_lock(42), pg_advisory_lock(42)", "select pg_advisory_unlock(42)"],
    ["select pg_advisory_lock(42)", "select pg_advisory_lock_shared(42)", "select pg_advisory_unlock(42)"],
    ["select pg_advisory_lock(g) from generate_series(1, 3) g", "select pg_advisory_unlock(2)"],
    ["select pg_advisory_lock(42) from generate_series(1, 3)", "select pg_advisory_unlock(42)"],
    ["select generate_series(1, 3), pg_advisory_lock(42)", "select pg_advisory_unlock(42)"],
]


@pytest.mark.parametrize("statements", LOCKED_TWICE, ids=[", ".join(each) for each in LOCKED_TWICE])
def test_a_lock_that_was_given_back_less_often_than_taken_does_not_stay(engine: Engine, statements: list[str]) -> None:
    executes(engine, *statements)()
    assert ask(engine, LOCKS) > 0
    engine.dispose()
    request(executes(engine, *statements), engine)
    assert ask(engine, LOCKS) == 0


@pytest.mark.parametrize("keys", [(42,), (1, 2)])
def test_a_lock_that_was_given_back_by_functions_with_parameters_costs_nothing(
    engine: Engine, keys: tuple[int, ...]
) -> None:
    def work() -> None:
        with Session(engine) as session, session.begin():
            for _ in range(2):
                session.execute(select(func.pg_advisory_lock(*keys)))
                with session.begin_nested():
                    assert session.scalar(select(func.pg_advisory_unlock(*keys)))

    pid = ask(engine, "select pg_backend_pid()")
    request(work, engine)
    assert ask(engine, LOCKS) == 0
    assert ask(engine, "select pg_backend_pid()") == pid


def test_a_lock_is_not_given_back_in_a_transaction_that_has_failed(engine: Engine) -> None:
    def work() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql("select pg_advisory_lock(42)")
            with pytest.raises(DBAPIError, match="zero"):
                connection.exec_driver_sql("select 1 / 0")
            with pytest.raises(DBAPIError, match="abort"):
                connection.exec_driver_sql("select pg_advisory_unlock(42)")

    work()
    assert ask(engine, LOCKS) == 1
    engine.dispose()
    request(work, engine)
    assert ask(engine, LOCKS) == 0


UNDONE_IN_VAIN = [
    ("set statement_timeout = 4321", "reset statement_timeout", "show statement_timeout"),
    ("create temp table mine (x int)", "drop table mine", "select to_regclass('pg_temp.mine')::text"),
    ("create temp table mine (x int)", "discard temp", "select to_regclass('pg_temp.mine')::text"),
    ("listen jobs", "unlisten jobs", "select string_agg(c, ',') from pg_listening_channels() c"),
]


@pytest.mark.parametrize("way", ["savepoint", "savepoint by text", "rollback", "rollback by text", "failed"])
@pytest.mark.parametrize(("change", "undo", "question"), UNDONE_IN_VAIN, ids=[each[1] for each in UNDONE_IN_VAIN])
def test_an_undo_that_is_rolled_back_does_not_count(
    engine: Engine, change: str, undo: str, question: str, way: str
) -> None:
    def work() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(change)
            if not way.startswith("savepoint"):
                connection.commit()
            nested = connection.begin_nested() if way == "savepoint" else None
            if way == "savepoint by text":
                connection.exec_driver_sql("savepoint s")
            connection.exec_driver_sql(undo)
            if nested:
                nested.rollback()
            elif way == "savepoint by text":
                connection.exec_driver_sql("rollback to s")
            elif way == "failed":
                with pytest.raises(DBAPIError):
                    connection.exec_driver_sql("select 1 / 0")
            elif way == "rollback by text":
                connection.exec_driver_sql("rollback")
            else:
                connection.rollback()
            try:
                connection.commit()
            except DBAPIError:  # some drivers tell that it was a rollback
                assert way == "failed"

    clean = ask(engine, question)
    for _ in range(3):  # at first it is not known what the setting was
        request(work, engine)
        assert ask(engine, question) == clean


def test_a_table_that_hides_behind_a_temporary_one_is_another(engine: Engine, postgres: PostgreSQL) -> None:
    postgres.query("create table if not exists public.hidden (x int)")
    request(executes(engine, "create table pg_temp.hidden (x int)", "drop table public.hidden"), engine)
    assert ask(engine, "select to_regclass('pg_temp.hidden')::text") is None


@pytest.mark.parametrize("guarded", [False, True])
def test_a_lock_does_not_outlast_its_request(engine: Engine, postgres: PostgreSQL, guarded: bool) -> None:
    """Nobody has to take the connection first."""
    work = executes(engine, "select pg_advisory_lock(4711)")
    question = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711"
    if not guarded:
        work()
        assert postgres.query(question) == [(1,)]
        return
    request(work, engine)
    wait_until(lambda: postgres.query(question) == [(0,)], timeout=60.0, what="the end of the lock")
    stats = guard(engine).stats()
    assert (stats["retired"], stats["connections"]) == (1, 0)
    assert ask(engine, "select 1") == 1


@pytest.mark.parametrize("text_of_commit", [False, True])
def test_what_was_committed_before_a_rollback_counts(engine: Engine, text_of_commit: bool) -> None:
    def work() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql("set statement_timeout = 1234")
            if text_of_commit:
                connection.exec_driver_sql("commit")
            else:
                connection.commit()
            connection.exec_driver_sql("select 1")

    request(work, engine)
    assert ask(engine, "show statement_timeout") == "0"


def test_in_autocommit_a_rollback_undoes_nothing(engine: Engine) -> None:
    request(
        executes(engine.execution_options(isolation_level="AUTOCOMMIT"), "set statement_timeout = 4321", commit=False),
        engine,
    )
    assert ask(engine, "show statement_timeout") == "0"


@pytest.mark.parametrize("local", [True, False])
def test_parameters_are_looked_into(engine: Engine, local: bool) -> None:
    pool_guard = guard(engine)

    def work() -> None:
        with Session(engine) as session:
            session.execute(select(func.set_config("app.tenant", "7", local)))
            assert session.scalar(select(func.current_setting("app.tenant"))) == "7"
            session.commit()

    for _ in range(3):
        request(work, engine)
        assert not ask(engine, "select current_setting('app.tenant', true)")
    stats = pool_guard.stats()
    assert (stats["replaced"], stats["restored"]) == (({}, 0) if local else ({"changed": 1}, 2))


@pytest.mark.parametrize("leaks", ["off", "warn"])
def test_off_and_warn_leave_it(engine: Engine, leaks: str) -> None:
    request(executes(engine, "set statement_timeout = 1234"), engine, leaks=leaks)
    assert ask(engine, "show statement_timeout") == "1234ms"


def test_outside_a_request_nothing_is_seen(engine: Engine) -> None:
    request(lambda: None, engine)
    executes(engine, "set statement_timeout = 1234")()
    assert ask(engine, "show statement_timeout") == "1234ms"


def test_a_name_for_each_user_costs_the_connection_and_is_not_remembered_for_ever(
    postgres: PostgreSQL, make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine(postgres.url(), pool_size=1, max_overflow=0)
    for number in range(40):
        request(executes(engine, f"set app.user{number} = '1'"), engine)
    assert not ask(engine, "select current_setting('app.user39', true)")
    assert guard(engine).stats()["replaced"] == {"changed": 40}


def test_what_belongs_together_is_put_back_together(engine: Engine) -> None:
    """First the role: this one may not set the other one."""
    for _ in range(3):
        request(executes(engine, "set session_replication_role = replica", "set role pg_monitor"), engine)
        assert ask(engine, "show session_replication_role") == "origin"
        assert ask(engine, "select current_user = session_user")
    assert guard(engine).stats()["replaced"] == {"changed": 1}


def test_many_at_once_do_not_meet_each_other(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(postgres.url(), pool_size=2, max_overflow=1)
    met: list[Any] = []

    def work(number: int) -> None:
        with engine.connect() as connection:
            found = connection.exec_driver_sql(
                "select nullif(current_setting('app.number', true), ''), (select count(*) from pg_locks"
                " where locktype = 'advisory' and pid = pg_backend_pid())"
            ).one()
            if tuple(found) != (None, 0):
                met.append(found)
            if number % 3 == 0:
                connection.exec_driver_sql(f"set app.number = '{number}'")
            elif number % 7 == 0:
                connection.exec_driver_sql(f"select pg_advisory_lock({number})")
            connection.commit()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: request(partial(work, number), engine), range(150)))
    assert met == []
    stats = guard(engine).stats()
    assert stats["restored"] > stats["replaced"]["changed"]
    assert stats["checkouts"] == 150


@pytest.mark.parametrize("missing", ["changes", "variables"])
def test_what_cannot_be_imported_costs_the_connection_and_no_request(
    missing: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may have no descriptor left when it sends the first statement that changes something."""
    pool_guard = guard(engine)
    before = ask(engine, "show statement_timeout")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, f"wsgi_dbguard.{missing}", None)
        request(executes(engine, "set statement_timeout = 4321"), engine)
        assert ask(engine, "show statement_timeout") == before
    assert pool_guard.stats()["replaced"] == {"changed": 1}
