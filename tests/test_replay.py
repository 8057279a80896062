"""May a request run again? Its method, what it has committed, its body, the budget."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import psycopg
import pymysql
import pytest
from sqlalchemy import Engine, event, exc, text
from sqlalchemy.orm import Session
from werkzeug.test import Client, create_environ

from wsgi_dbguard import DBGuard, failures, replayable
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.lab.exchanges import PLAIN, Site, posted
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.replay import Budget, reason_against
from wsgi_dbguard.request import Request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

INSERT = text("insert into noted values ('once')")
UNKNOWN, UNAVAILABLE = "urn:wsgi-dbguard:outcome-unknown", "urn:wsgi-dbguard:unavailable"


def ignore(*args: Any) -> Any:
    """A start_response."""


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(postgres.url())


# What a request has done


def rolled_back(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(INSERT)
        connection.rollback()


def open_at_failure(engine: Engine) -> None:
    session = Session(engine)
    session.execute(INSERT)


def reads_only(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("select 1"))


def reads_in_autocommit(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("select 1"))


@pytest.mark.parametrize("work", [rolled_back, open_at_failure, reads_only, reads_in_autocommit])
def test_what_left_nothing_behind_runs_again(
    work: Callable[[Engine], None], postgres: PostgreSQL, engine: Engine, rows: Callable[[], list[str]]
) -> None:
    site = Site(postgres, engine, work)
    assert posted(site, engine) == ("200 OK", None, False)
    assert (site.runs, len(rows())) == (2, 0)


def core(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(INSERT)


def orm(engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(INSERT)
        session.commit()


def by_an_engine_copy(engine: Engine) -> None:
    core(engine.execution_options(logging_token="copy"))


def autocommit(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(INSERT)


def function_in_autocommit(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("select note()"))


def function(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("select note()"))


def call_statement(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("call noting()"))
        connection.commit()


def commit_as_text(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(INSERT)
        connection.execute(text("commit"))


def commit_in_the_same_text(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("insert into noted values ('once'); commit")


def raw(engine: Engine) -> None:
    connection = engine.raw_connection()
    try:
        connection.cursor().execute(INSERT.text)
        connection.commit()
    finally:
        connection.close()


def raw_beside_another_engine(engine: Engine) -> None:
    raw(engine)
    for _ in range(3):
        with engine.connect():
            pass


COMMITTED = [
    core,
    orm,
    by_an_engine_copy,
    autocommit,
    function,
    function_in_autocommit,
    call_statement,
    commit_as_text,
    commit_in_the_same_text,
    raw,
    raw_beside_another_engine,
]


@pytest.mark.parametrize("work", COMMITTED)
def test_what_may_have_committed_does_not_run_again(
    work: Callable[[Engine], None], postgres: PostgreSQL, engine: Engine, rows: Callable[[], list[str]]
) -> None:
    postgres.query(
        "create or replace function note() returns void as $$ insert into noted values ('f') $$ language sql"
    )
    postgres.query("create or replace procedure noting() as $$ insert into noted values ('p') $$ language sql")
    site = Site(postgres, engine, work)
    assert posted(site, engine) == ("503 Service Unavailable", UNKNOWN, False)
    assert (site.runs, len(rows())) == (1, 1)


def test_a_commit_on_an_engine_that_is_not_guarded_counts(
    postgres: PostgreSQL, make_engine: Callable[..., Engine], engine: Engine, rows: Callable[[], list[str]]
) -> None:
    other = make_engine(postgres.url(application_name="other"))
    site = Site(postgres, engine, lambda _: core(other))
    assert posted(site, engine)[1] == UNKNOWN
    site = Site(postgres, engine, lambda _: raw(other))
    assert posted(site, engine)[1] == UNKNOWN
    assert len(rows()) == 2


def test_two_phase_commits_count(make_engine: Callable[..., Engine]) -> None:
    with PostgreSQL(settings={"max_prepared_transactions": "4"}) as server:
        server.query("create table noted (name text)")
        engine = make_engine(server.url())

        def work(engine: Engine) -> None:
            with engine.connect() as connection:
                transaction = connection.begin_twophase()
                connection.execute(INSERT)
                transaction.prepare()
                transaction.commit()

        site = Site(server, engine, work)
        assert posted(site, engine)[1] == UNKNOWN
        assert server.query("select count(*) from noted") == [(1,)]
        engine.dispose()


@pytest.mark.parametrize("work", [core, orm])
@pytest.mark.parametrize(("direction", "left"), [("client", 0), ("server", 1)])
def test_a_lost_commit_is_in_doubt(
    work: Callable[[Engine], None],
    direction: Any,
    left: int,
    postgres: PostgreSQL,
    make_engine: Callable[..., Engine],
    rows: Callable[[], list[str]],
) -> None:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        engine = make_engine(postgres.url_through(proxy.host, proxy.port))
        runs: list[int] = []

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            runs.append(1)
            work(engine)
            raise AssertionError

        with engine.connect():
            pass
        event.listen(engine, "commit", lambda connection: proxy.drop_after(0, direction=direction))
        assert posted(app, engine) == ("503 Service Unavailable", UNKNOWN, False)
        assert (len(runs), len(rows())) == (1, left)
        engine.dispose()


def test_a_commit_that_the_server_refused_is_not_in_doubt(
    postgres: PostgreSQL, engine: Engine, rows: Callable[[], list[str]]
) -> None:
    # a serialization failure at COMMIT, by a deferred trigger
    postgres.query(
        "create or replace function lose() returns trigger as $$ begin"
        " if (select count(*) from noted) = 1 then raise exception using errcode = '40001'; end if; return null;"
        " end $$ language plpgsql"
    )
    postgres.query(
        "create constraint trigger lose after insert on noted deferrable initially deferred"
        " for each row execute function lose()"
    )
    runs: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        runs.append(1)
        with engine.begin() as connection:
            for _ in runs:  # one row in the first run, two in the second
                connection.execute(INSERT)
        start_response("200 OK", PLAIN)
        return [b"well"]

    assert posted(app, engine)[0] == "200 OK"
    assert (len(runs), len(rows())) == (2, 2)


def test_every_condition_has_its_reason() -> None:
    def reason(mode: str = "safe", method: str = "GET", **state: Any) -> str | None:
        request = Request({"REQUEST_METHOD": method})
        request.database_failure = Failure.DISCONNECT
        for name, value in state.items():
            setattr(request, name, value)
        return reason_against(request, mode)

    assert reason() is None
    assert reason("off") == "replay is off"
    assert reason(attempt=2) == "it was the second attempt"
    assert reason(commits=1) == "it has committed"
    assert reason(in_doubt=True) == "a commit is in doubt"
    assert reason(method="POST") == "the method is POST"
    assert reason(method="POST", replayable=True) is None
    assert reason("uncommitted", "DELETE") is None
    assert "past SQLAlchemy" in (reason("uncommitted", "POST", unseen=1) or "")
    assert "past SQLAlchemy" in (reason(unseen=1) or "")
    for failure in Failure:
        helped = failure in ("disconnect", "read-only", "serialization", "deadlock")
        assert (reason(database_failure=failure) is None) == helped
    assert reason(database_failure=None) == "the failure is not the database"


# The budget


def test_an_outage_does_not_double_the_load(engine: Engine) -> None:
    runs: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        runs.append(1)
        raise exc.OperationalError("", {}, Exception(), connection_invalidated=True)

    guard = DBGuard(app, engine)
    for _ in range(100):
        guard(create_environ(), ignore)
    assert 120 <= len(runs) <= 130


def test_the_budget_is_a_tenth_of_the_requests_after_a_burst() -> None:
    budget = Budget(burst=5.0)
    assert [budget.spend(0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert sum(budget.spend(100) for _ in range(20)) == 5  # never more than a burst at once
    assert sum(budget.spend(131) for _ in range(20)) == 3
    assert [budget.spend(each) for each in range(132, 142)] == [False] * 8 + [True, False]


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (pymysql.OperationalError(1213, "Deadlock found"), True),
        (pymysql.OperationalError(2013, "Lost connection"), False),
        (pymysql.OperationalError(2027, "Malformed packet"), False),
        (pymysql.OperationalError(1053, "Server shutdown in progress"), False),
        (psycopg.NotSupportedError("prepared transactions are disabled"), True),
        (psycopg.OperationalError("the connection is lost"), False),
        (TimeoutError(), False),
        (SystemExit(), False),
    ],
)
def test_only_the_servers_own_word_takes_a_commit_back(error: BaseException, refused: bool, engine: Engine) -> None:
    assert failures.refused(error) == refused
    request = Request({"REQUEST_METHOD": "POST"})
    with engine.connect() as connection:
        request.note(commits=1)
        request.committing = weakref.ref(connection.connection)
        for _ in range(2):  # the second one is about something else
            request.database_failed(failures.classify(error), connection, committing=True, refused=refused)
    assert (request.commits, request.in_doubt) == ((0, False) if refused else (1, True))


@pytest.mark.parametrize("way", ["call", "decorator", "environ"])
def test_an_application_can_say_that_a_post_may_run_again(
    way: str, postgres: PostgreSQL, engine: Engine, rows: Callable[[], list[str]]
) -> None:
    site = Site(postgres, engine, lambda engine: None)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if way == "environ":
            environ["wsgi_dbguard.replayable"] = True
        elif way == "call":
            replayable()
        return (replayable(site) if way == "decorator" else site)(environ, start_response)

    assert Client(DBGuard(app, engine)).post("/").status_code == 200
    assert site.runs == 2
