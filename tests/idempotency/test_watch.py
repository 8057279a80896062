"""How commits are seen: without SQLAlchemy's connection events, whatever copy of the engine they come by."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, text

from wsgi_dbguard.idempotency import Idempotent, create_table

from .conftest import KEYS, Database, Shop, orders, post, site, url_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def marked(database: Database) -> bool:
    return bool(database.query(f"select count(*) from {KEYS} where applied")[0][0])


def writing_by(engine: Engine) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.begin() as connection:
            connection.execute(text("insert into orders values ('apple')"))
        raise KeyError("a bug")

    return app


@pytest.mark.parametrize("copied", ["keys", "application", "both"])
def test_copies_of_the_engine_are_the_same_database(engine: Engine, database: Database, copied: str) -> None:
    keys = engine.execution_options(logging_token="keys") if copied != "application" else engine
    application = engine.execution_options(logging_token="app") if copied != "keys" else engine
    with pytest.raises(KeyError):
        post(site(writing_by(application), keys))
    assert (orders(database), marked(database)) == (["apple"], True)


def test_an_engine_that_was_wrapped_twice_marks_once(engine: Engine, database: Database) -> None:
    with pytest.raises(KeyError):
        post(site(writing_by(engine), engine))
    do_commit = engine.dialect.do_commit
    Idempotent(writing_by(engine), engine, principal=None)
    assert engine.dialect.do_commit is do_commit


def test_no_statement_gets_dearer_by_connection_events(shop: Shop, engine: Engine) -> None:
    """A private flag of SQLAlchemy's: it is what costs some µs, for all that use the engine."""
    site(shop, engine)
    assert not engine._has_events


def test_an_engine_does_not_live_longer_for_it(database: Database) -> None:
    engine = create_engine(url_of(database))
    app = site(Shop(engine), engine)
    post(app)
    dead = [weakref.ref(each) for each in (engine, engine.dialect, engine.pool)]
    engine.dispose()
    del engine, app
    gc.collect()
    assert [each() for each in dead] == [None, None, None]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_tables_schema_is_the_engines(database: Database, make_engine: Any) -> None:
    """Of a schema_translate_map, whatever the one of the application's connection is."""
    database.query("create schema keys_apart")
    try:
        engine: Engine = make_engine(url_of(database)).execution_options(schema_translate_map={None: "keys_apart"})
        create_table(engine)
        tenant = engine.execution_options(schema_translate_map={None: "tenant"})
        with pytest.raises(KeyError):
            post(site(writing_by(tenant), engine))
        assert database.query("select count(*) from keys_apart.idempotency_keys where applied") == [(1,)]
    finally:
        database.query("drop schema keys_apart cascade")


def test_a_connection_that_was_invalidated_is_not_waited_for(engine: Engine, database: Database) -> None:
    """The answer is stored before its last byte leaves, once the application has given back its connections."""
    stored = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with engine.connect() as connection:
            connection.execute(text("select 1"))
            connection.invalidate()
        start_response("200 OK", [("Content-Length", "2")])
        yield b"ok"
        stored.append(database.query(f"select count(*) from {KEYS} where head is not null")[0][0])

    post(site(app, engine))
    assert stored == [1]
