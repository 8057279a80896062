"""How writes are seen: without SQLAlchemy's connection events, and by whatever way they come."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from wsgi_dbguard.routing import Replicas

from . import conftest
from .conftest import Site

INSERT = text("INSERT INTO items (name) VALUES ('anvil')")


def test_no_statement_gets_dearer_by_connection_events(site: Site) -> None:
    """A private flag of SQLAlchemy's: it is what costs some µs, for all that use the engine."""
    assert not site.primary._has_events
    assert not site.replica._has_events


def test_a_core_connection_that_writes_is_a_sign(site: Site) -> None:
    def view() -> str:
        with site.primary.begin() as connection:
            connection.execute(INSERT)
        return site.where()

    answer = site.ask(view)
    assert answer.body == "primary"
    assert "DB-Position" in answer.headers


def test_a_raw_connection_may_have_written(site: Site) -> None:
    def view() -> str:
        site.primary.raw_connection().close()
        return "done"

    assert "DB-Position" in site.ask(view).headers


def test_a_connection_that_only_reads_is_none(site: Site) -> None:
    def view() -> str:
        with site.primary.connect() as connection:
            connection.execute(text("SELECT 1"))
        return site.where()

    answer = site.ask(view)
    assert answer.body == "replica"
    assert "DB-Position" not in answer.headers


def test_a_transaction_that_goes_on_after_a_commit_has_a_position(site: Site) -> None:
    """What was written is committed; that the connection reads again is no reason for a pin."""

    def view() -> Iterator[bytes]:
        with site.primary.connect() as connection:
            connection.execute(INSERT)
            connection.commit()
            connection.execute(text("SELECT 1"))
            yield b"done"

    answer = site.ask(view)
    assert answer.body == "done"
    assert "DB-Position" in answer.headers
    assert site.replicas.stats()["pins"] == 0


def test_a_cursor_of_the_drivers_own_is_seen_by_its_commit(site: Site) -> None:
    def view() -> str:
        with site.session() as session:
            cursor = session.connection().connection.cursor()
            cursor.execute("INSERT INTO items (name) VALUES ('anvil')")
            cursor.close()
            session.commit()
        return "done"

    site.pair.pause_replay()
    answer = site.ask(view, "POST")
    assert site.replicas.stats()["pins"] == 0
    assert site.ask(site.names, HTTP_COOKIE=answer.cookie).body == "anvil"


def test_a_cursor_and_a_commit_of_the_drivers_own_are_seen_by_the_connection(site: Site) -> None:
    def view() -> str:
        with site.session() as session:
            driver = session.connection().connection
            driver.cursor().execute("INSERT INTO items (name) VALUES ('anvil')")
            driver.commit()
        return "done"

    site.pair.pause_replay()
    answer = site.ask(view, "POST")
    assert site.ask(site.names, HTTP_COOKIE=answer.cookie).body == "anvil"


def test_what_somebody_elses_listener_sends_is_seen_by_its_commit(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(cursor: Any, statement: str, parameters: Any, context: object) -> bool:
        cursor.execute(statement, parameters)
        return True

    def make_engine(*args: Any, **options: Any) -> Engine:
        engine = create_engine(*args, **options)
        event.listen(engine, "do_execute", send)
        return engine

    monkeypatch.setattr(conftest, "create_engine", make_engine)
    site = make_site()

    def view() -> str:
        with site.primary.begin() as connection:
            connection.execute(INSERT)
        return "done"

    assert "DB-Position" in site.ask(view).headers


def test_engines_do_not_live_longer_for_it(site: Site) -> None:
    primary, replica = create_engine(site.pair.primary.url()), create_engine(site.pair.replica.url())
    replicas = Replicas(primary, [replica], secret="secret")
    dead = [weakref.ref(each) for each in (primary, replica, replicas)]
    del primary, replica, replicas
    gc.collect()
    assert [each() for each in dead] == [None, None, None]
