"""A COMMIT is no query: a request that has spent its time in the database does not have it cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, text
from werkzeug.test import Client

from wsgi_dbguard import DBGuard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PATIENCE = 60.0  # seconds, however busy the machine


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(postgres.url(), pool_size=2, max_overflow=0)


@pytest.fixture
def slow_to_commit(postgres: PostgreSQL) -> Iterator[str]:
    """A table: what is in its first row is how many seconds its COMMIT takes."""
    postgres.query("create table slow_to_commit (seconds float)")
    postgres.query(
        "create function wait() returns trigger language plpgsql"
        " as 'begin perform pg_sleep(new.seconds); return new; end'"
    )
    postgres.query(
        "create constraint trigger waits after insert on slow_to_commit deferrable initially deferred"
        " for each row execute function wait()"
    )
    yield "slow_to_commit"
    postgres.query("drop table slow_to_commit")
    postgres.query("drop function wait")


def saving(engine: Engine, seconds: float, then: str = "") -> WSGIApplication:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            connection.execute(text("insert into slow_to_commit values (:seconds)"), {"seconds": seconds})
            connection.commit()
            if then:
                connection.execute(text(then))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"saved"]

    return application


def post(app: WSGIApplication) -> tuple[int, str]:
    """The status, and the kind of problem."""
    response = Client(app).post("/", buffered=True)
    return response.status_code, str(response.json["type"]).rpartition(":")[2] if response.json else ""


def test_a_commit_is_not_cancelled(engine: Engine, postgres: PostgreSQL, slow_to_commit: str) -> None:
    guarded = DBGuard(saving(engine, 1.0), engine, deadline=0.5, ping_timeout=PATIENCE)
    assert post(guarded) == (200, "")
    assert postgres.query(f"select count(*) from {slow_to_commit}") == [(1,)]


def test_but_its_time_counts(engine: Engine, slow_to_commit: str) -> None:
    guarded = DBGuard(saving(engine, 1.0, then="select 1"), engine, deadline=0.5, ping_timeout=PATIENCE)
    response = post(guarded)
    assert response == (503, "outcome-unknown")


def test_one_that_takes_much_too_long_is_cut_off_and_goes_on_in_the_server(
    engine: Engine, postgres: PostgreSQL, slow_to_commit: str
) -> None:
    guarded = DBGuard(saving(engine, 3.0), engine, deadline=0.5, ping_timeout=0.5)
    begun = time.monotonic()
    response = post(guarded)
    assert response == (503, "outcome-unknown")
    assert time.monotonic() - begun >= 0.5
    saved = f"select count(*) from {slow_to_commit}"
    wait_until(lambda: postgres.query(saved) == [(1,)], timeout=PATIENCE, what="the end of the COMMIT")
