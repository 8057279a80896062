"""A transaction that began before its request had the key: its snapshot in PostgreSQL does not show the claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from wsgi_dbguard.idempotency import ClaimUnseen
from wsgi_dbguard.lab.mariadb import MariaDB

from .conftest import Database, kind, orders, post, rows, site, url_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.fixture(params=["REPEATABLE READ", "SERIALIZABLE"])
def engine(request: pytest.FixtureRequest, database: Database, make_engine: Any) -> Engine:
    engine: Engine = make_engine(url_of(database), isolation_level=request.param)
    return engine


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

    def waits() -> Any:
        return database.query("show global status like 'innodb_row_lock_waits'")[0][1]

    def works(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            connection.execute(text("update idempotency_keys set applied = true"))
            told.append(kind(post(app)))
        start_response("201 Created", [])
        return [b"well"]

    told: list[Any] = []
    app, before = site(works, engine), waits()
    database.query("set global innodb_lock_wait_timeout = 1")
    try:
        assert post(app).status_code == 201
    finally:
        database.query("set global innodb_lock_wait_timeout = default")
    assert (told, waits()) == ([(409, "idempotency-running")], before)
