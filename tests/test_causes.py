"""Whether an exception with which a request ended is the database's, and what the client is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.causes import failure_behind
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.lab.postgres import PostgreSQL

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class ServerError(Exception):
    """A driver's."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__("it failed")
        self.sqlstate = sqlstate


def raised(sqlstate: str, kind: type[exc.DBAPIError] = exc.OperationalError) -> exc.DBAPIError:
    return kind("select 1", {}, ServerError(sqlstate))


def around(error: BaseException) -> Exception:
    """An error of the application's, raised while `error` was being handled."""
    outer = LookupError()
    outer.__context__ = error
    return outer


def circle() -> Exception:
    one, other = LookupError(), LookupError()
    one.__cause__, other.__cause__ = other, one
    return one


@pytest.mark.parametrize(
    ("error", "known", "failure"),
    [
        (raised("57P01"), None, Failure.DISCONNECT),
        (raised("57P01"), Failure.UNAVAILABLE, Failure.UNAVAILABLE),  # the events knew better
        (raised("40001"), None, Failure.SERIALIZATION),
        (raised("23505", exc.IntegrityError), Failure.DISCONNECT, None),
        (raised("42601", exc.ProgrammingError), Failure.DISCONNECT, None),
        (raised("XX000"), Failure.DISCONNECT, Failure.DISCONNECT),
        (raised("XX000"), None, None),
        (exc.TimeoutError(), None, Failure.UNAVAILABLE),
        (StaleDataError(), None, Failure.STALE),
        (StaleDataError(), Failure.DISCONNECT, Failure.STALE),
        (exc.PendingRollbackError(), Failure.DISCONNECT, Failure.DISCONNECT),
        (exc.PendingRollbackError(), None, None),
        (around(exc.TimeoutError()), None, Failure.UNAVAILABLE),
        (LookupError(), Failure.DISCONNECT, None),
        (circle(), Failure.DISCONNECT, None),
    ],
)
def test_whose_error_it_is(error: BaseException, known: Failure | None, failure: Failure | None) -> None:
    assert failure_behind(error, known) is failure


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    postgres.query("drop table if exists counter")
    postgres.query("create table counter (n int)")
    postgres.query("insert into counter values (0)")
    yield make_engine(postgres.url(), isolation_level="REPEATABLE READ")
    postgres.query("drop table counter")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "500"),
        ({"statuses": "conflicts"}, "409 conflict"),
        ({"statuses": False}, "500"),
        ({"statuses": "conflicts", "replay": "uncommitted"}, "200"),
    ],
)
def test_serialization_failure_is_a_conflict_where_asked_for(
    settings: dict[str, Any], told: str, engine: Engine, postgres: PostgreSQL
) -> None:
    attempts = 0

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        nonlocal attempts
        attempts += 1
        try:
            with Session(engine) as session:
                session.scalar(text("select n from counter"))
                if attempts == 1:
                    postgres.query("update counter set n = n + 1")
                session.execute(text("update counter set n = n + 1"))
                session.commit()
            status = "200 OK"
        except exc.OperationalError:
            status = "500 Internal Server Error"
        start_response(status, [("Content-Type", "text/plain")])
        return [b""]

    response = Client(DBGuard(app, engine, **settings)).post("/")
    problem = json.loads(response.data)["type"].rpartition(":")[2] if response.data else ""
    assert f"{response.status_code} {problem}".strip() == told
