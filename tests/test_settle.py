"""A COMMIT whose reply is lost: with ``settle`` PostgreSQL is asked what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session
from werkzeug.test import Client

from wsgi_dbguard import DBGuard, OutcomeUnknown, guard, settle
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.proxy import FaultProxy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Lose = Callable[[FaultProxy, str], object]


PARSED = {"pg8000": 29}  # bytes: it has the COMMIT parsed and described before it is carried out


def lose_request(proxy: FaultProxy, driver: str) -> None:
    """The COMMIT itself is lost."""
    proxy.drop_after(0, direction="client")


def lose_reply(proxy: FaultProxy, driver: str) -> None:
    """Only its reply is lost."""
    proxy.drop_after(PARSED.get(driver, 0), direction="server")


@pytest.fixture(params=["psycopg2", "psycopg", "pg8000"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def table(postgres: PostgreSQL) -> Iterator[str]:
    postgres.query("create table settled (name text)")
    yield "settled"
    postgres.query("drop table settled")


class Site:
    """An application that inserts one row in each request; the connection is lost at the COMMIT of the first one."""

    def __init__(self, engine: Engine, proxy: FaultProxy, lose: Lose) -> None:
        self.engine = engine
        self.proxy = proxy
        self.lose: Lose | None = lose
        self.runs = 0
        self.statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *args: self.statements.append(args[2]))
        # Below the guard's own, which asks for the transaction's id before the COMMIT is sent.
        self.do_commit = engine.dialect.do_commit
        engine.dialect.do_commit = self._commit  # type: ignore[method-assign, assignment]

    def _commit(self, connection: Any) -> None:
        if self.lose is not None:
            lose, self.lose = self.lose, None
            lose(self.proxy, self.engine.dialect.driver)
        self.do_commit(connection)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.runs += 1
        with Session(self.engine) as session:
            session.execute(text("insert into settled values ('once')"))
            session.commit()
        start_response("201 Created", [("Content-Type", "text/plain")])
        return [b"well"]


@pytest.fixture
def site(postgres: PostgreSQL, make_engine: Any, driver: str, table: str) -> Iterator[Callable[..., Any]]:
    with FaultProxy(postgres.host, postgres.port) as proxy:
        engine = make_engine(postgres.url_through(proxy.host, proxy.port, driver))

        def make(lose: Lose, **settings: Any) -> tuple[Site, WSGIApplication]:
            app = Site(engine, proxy, lose)
            guard(engine, **{"settle": True, **settings})
            return app, DBGuard(app, engine, replay="uncommitted", **{"settle": True, **settings})

        yield make
        engine.dispose()


def post(app: WSGIApplication) -> tuple[int, str]:
    response = Client(app).post("/", data=b"")
    problem: Any = response.json if response.is_json else None
    return response.status_code, problem["type"].rpartition(":")[2] if problem else response.text


def rows(postgres: PostgreSQL) -> int:
    return int(postgres.query("select count(*) from settled")[0][0])


@pytest.mark.parametrize("lose", [lose_request, lose_reply])
def test_without_it_the_outcome_is_unknown(site: Any, postgres: PostgreSQL, lose: Lose) -> None:
    app, guarded = site(lose, settle=False)
    assert post(guarded) == (503, "outcome-unknown")
    assert app.runs == 1


def test_a_commit_that_was_carried_out_succeeds(site: Any, postgres: PostgreSQL) -> None:
    app, guarded = site(lose_reply)
    assert post(guarded) == (201, "well")
    assert (app.runs, rows(postgres)) == (1, 1)
    assert post(guarded) == (201, "well")  # the pool is well
    assert rows(postgres) == 2


def test_one_that_was_not_runs_again(site: Any, postgres: PostgreSQL) -> None:
    app, guarded = site(lose_request)
    assert post(guarded) == (201, "well")
    assert (app.runs, rows(postgres)) == (2, 1)


def test_or_is_unavailable_where_it_may_not(site: Any, postgres: PostgreSQL) -> None:
    app, _ = site(lose_request)
    assert post(DBGuard(app, app.engine)) == (503, "unavailable")
    assert rows(postgres) == 0


def test_it_works_without_a_request(site: Any, postgres: PostgreSQL) -> None:
    app, _ = site(lose_reply)
    with Session(app.engine) as session:
        session.execute(text("insert into settled values ('once')"))
        session.commit()
    assert rows(postgres) == 1
    app.lose = lose_request
    with Session(app.engine) as session:
        session.execute(text("insert into settled values ('once')"))
        with pytest.raises((DBAPIError, OSError)):
            session.commit()
    assert rows(postgres) == 1


def test_another_history_tells_nothing(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a promotion or a crash, when the same id may be another transaction's."""
    asked = settle._ASK.replace("left(", "'other' || left(")
    monkeypatch.setattr(settle, "_ASK", asked)
    _, guarded = site(lose_reply)
    assert post(guarded) == (503, "outcome-unknown")


def test_a_request_that_only_reads_pays_nothing(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = site(lose_reply)
    seen: list[str] = []
    app.lose = None

    def reads(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with Session(app.engine) as session:
            seen.append(str(session.scalar(text("select count(*) from settled"))))
            session.commit()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"well"]

    asked: list[object] = []
    monkeypatch.setattr(settle, "_lost", lambda *args: asked.append(args))
    monkeypatch.setattr(settle, "_IDENTIFY", "this is no SQL")
    assert Client(DBGuard(reads, app.engine)).get("/").status_code == 200
    assert (seen, asked) == (["0"], [])


def test_the_application_meets_an_error_of_its_own_kind(site: Any) -> None:
    app, _ = site(lose_request, settle=False)
    met: list[DBAPIError] = []

    def notes(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            yield from app(environ, start_response)
        except OperationalError as error:
            met.append(error)
            raise

    assert post(DBGuard(notes, app.engine)) == (503, "outcome-unknown")
    assert [type(error) for error in met] == [OutcomeUnknown]
    assert met[0].connection_invalidated


def test_a_server_that_refuses_to_tell_loses_no_row_in_silence(
    site: Any, postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails aborts the transaction, and a COMMIT of that is a ROLLBACK which says nothing."""
    app, guarded = site(lose_reply)
    app.lose = None
    with monkeypatch.context() as patch:
        patch.setattr(settle, "_IDENTIFY", "select no_such_function()")
        with pytest.raises(DBAPIError, match="no_such_function"):
            post(guarded)
    assert rows(postgres) == 0
    app.engine.dialect.server_version_info = (12, 0)
    monkeypatch.setattr(settle, "_IDENTIFY", "select no_such_function()")
    assert post(guarded) == (201, "well")
    assert rows(postgres) == 1
