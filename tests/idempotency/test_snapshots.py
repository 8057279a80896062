"""What the isolation level of the engine does to a key: its snapshots and locks.

A transaction that began before its request had the key does not see the claim in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from wsgi_dbguard.idempotency import ClaimUnseen, Idempotent
from wsgi_dbguard.lab.mariadb import MariaDB

from .conftest import Database, kind, orders, post, rows, site, url_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.fixture(params=["REPEATABLE READ", "SERIALIZABLE"])
def engine(request: pytest.FixtureRequest, database: Database, make_engine: Any) -> Engine:
    engine: Engine = make_engine(url_of(database), isolation_level=request.param)
    return engine


@contextmanager
def waiting(database: Database, *, times: int) -> Iterator[None]:
    """MariaDB's transactions wait for a lock so many times meanwhile, for a second each."""

    def waits() -> int:
        return int(database.query("show global status like 'innodb_row_lock_waits'")[0][1])

    before = waits()
    database.query("set global innodb_lock_wait_timeout = 1")
    try:
        yield
    finally:
        database.query("set global innodb_lock_wait_timeout = default")
    assert waits() - before == times


class Shop:
    """Its `principal` reads in the session that the application writes in."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.session = Session(engine)
        self.ends = False  # `principal` its transaction
        self.swallows = False

    def principal(self, environ: WSGIEnvironment) -> str:
        self.session.execute(text("select count(*) from orders"))
        if self.ends:
            self.session.commit()
        return "ann"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            self.session.execute(text("insert into orders values ('apple')"))
            self.session.commit()
        except DBAPIError:
            self.session.rollback()
            if not self.swallows:
                raise
        start_response("201 Created", [])
        return [b"well"]


@pytest.fixture
def shop(engine: Engine) -> Iterator[Shop]:
    shop = Shop(engine)
    yield shop
    shop.session.close()


def test_the_key_is_not_stuck(shop: Shop, engine: Engine, database: Database) -> None:
    app = site(shop, engine, principal=shop.principal)
    if not isinstance(database, MariaDB):
        for _ in range(2):
            with pytest.raises(ClaimUnseen, match="principal"):
                post(app)
            assert (orders(database), rows(database)) == ([], 0)
        shop.ends = True
    assert post(app).text == "well"
    shop.session.rollback()
    assert post(app).headers["Idempotent-Replayed"] == "true"
    assert orders(database) == ["apple"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("swallows", [False, True])
def test_nor_is_the_fence_open(shop: Shop, engine: Engine, database: Database, swallows: bool) -> None:
    """Another request has the key by the time that the snapshot begins."""
    shop.swallows = swallows

    def lost(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        database.query("update idempotency_keys set owner = 'another'")
        return shop(environ, start_response)

    assert kind(post(site(lost, engine))) == (409, "idempotency-running")
    assert orders(database) == []


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_key_that_is_just_being_applied_is_not_waited_for(engine: Engine, database: Database) -> None:
    """In SERIALIZABLE a SELECT would, and of a key that is not there yet it would lock out the others' claims."""

    def works(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            connection.execute(text("update idempotency_keys set applied = true"))
            told.append(kind(post(app)))
        start_response("201 Created", [])
        return [b"well"]

    told: list[Any] = []
    app = site(works, engine)
    with waiting(database, times=0):
        assert post(app).status_code == 201
    assert told == [(409, "idempotency-running")]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("engine", ["REPEATABLE READ"], indirect=True)
def test_a_claim_that_is_just_being_made_is_waited_for_once(engine: Engine, database: Database) -> None:
    """Its process may have been stopped before it could commit; MariaDB has no INSERT … NOWAIT."""

    app = Idempotent(Shop(engine), engine, principal=None)
    post(app)
    row = database.query("select id, fingerprint from idempotency_keys")[0]
    database.query("delete from idempotency_keys")
    with engine.connect() as other, waiting(database, times=1):
        insert = (
            "insert into idempotency_keys (id, fingerprint, owner, created, expires) values (:id, :print, '', 0, 0)"
        )
        other.execute(text(insert), dict(zip(("id", "print"), row, strict=True)))
        assert kind(post(app)) == (409, "idempotency-running")
    assert orders(database) == ["apple"]
