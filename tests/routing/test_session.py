"""Within one request: one replica until the first sign of a write, then the primary for the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import scoped_session

from wsgi_dbguard.routing import primary

from .conftest import IN_RECOVERY, Item, Site


def test_outside_of_requests_it_is_the_primary(site: Site) -> None:
    assert site.where() == "primary"


@pytest.mark.parametrize(("method", "server"), [("GET", "replica"), ("HEAD", "replica"), ("POST", "primary")])
def test_the_method_decides(site: Site, method: str, server: str) -> None:
    seen = []
    site.ask(lambda: seen.append(site.where()), method)
    assert seen == [server]


def test_a_scoped_session_is_routed_as_well(site: Site) -> None:
    session = scoped_session(site.session)
    assert site.ask(lambda: site.where(session)).body == "replica"
    session.remove()


def test_a_copy_of_the_engine_leads_to_a_copy_of_the_replicas(site: Site) -> None:
    def view() -> str:
        with site.session() as session:
            return f"{session.scalar(text('SHOW transaction_isolation'))} {site.where(session)}"

    site.session.configure(bind=site.primary.execution_options(isolation_level="REPEATABLE READ"))
    assert site.ask(view).body == "repeatable read replica"
    # A standby refuses that one.
    site.session.configure(bind=site.primary.execution_options(isolation_level="SERIALIZABLE"))
    assert site.ask(view).body == "serializable primary"


def insert_by_core(session: Any) -> None:
    session.execute(insert(Item).values(name="core"))


def flush(session: Any) -> None:
    session.add(Item(name="flushed"))
    session.flush()


SIGNS: list[Callable[[Any], object]] = [
    insert_by_core,
    flush,
    lambda session: session.bulk_insert_mappings(Item, [{"name": "bulk"}]),
    lambda session: session.execute(select(Item).with_for_update()),
    lambda session: session.execute(text("SELECT * FROM items FOR UPDATE")),
    lambda session: session.execute(text("SET LOCAL work_mem = '1MB'")),
    lambda session: session.execute(select(func.pg_advisory_xact_lock(1))),
    lambda session: session.connection(),
]


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_from_the_first_sign_of_a_write_it_is_the_primary_for_all_sessions(
    site: Site, sign: Callable[[Any], object], end: str
) -> None:
    def view() -> str:
        with site.session() as session, site.session() as other:
            places = [site.where(session), site.where(other)]
            sign(session)
            places += [site.where(session), site.where(other)]
            getattr(session, end)()
            places += [site.where(session), site.where(other), site.where()]
        return " ".join(places)

    assert site.ask(view).body == " ".join(["replica"] * 2 + ["primary"] * 5)
    assert site.ask(site.where).body == "replica"


def test_a_write_past_the_sessions_is_a_sign_as_well(site: Site) -> None:
    def view() -> str:
        before = site.where()
        with site.primary.begin() as connection:
            connection.execute(insert(Item).values(name="core"))
        return f"{before} {site.where()}"

    answer = site.ask(view)
    assert answer.body == "replica primary"
    assert "DB-Position" in answer.headers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_within_one_that_wrote_reads_that(site: Site, method: str) -> None:
    site.pair.pause_replay()

    def view() -> str:
        before = site.ask(site.where).body
        site.add()
        return f"{before} {site.ask(site.names).body}"

    assert site.ask(view, method).body == "replica anvil"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_has_the_position_of_one_within_it(site: Site, method: str) -> None:
    answer = site.ask(lambda: site.ask(site.add, "POST").body + site.where(), method)
    assert answer.body == "anvilprimary"
    assert "DB-Position" in answer.headers


def test_by_hand(site: Site) -> None:
    def view() -> str:
        option = {"dbguard_primary": True}
        with site.session() as session:
            places = [site.where(session)]
            with primary():
                places.append(site.where(session))
            places.append("primary" if not session.scalar(IN_RECOVERY.execution_options(**option)) else "replica")
            places.append("primary" if not session.scalar(IN_RECOVERY, execution_options=option) else "replica")
            orm = select(func.pg_is_in_recovery()).select_from(Item).execution_options(**option)
            session.execute(orm)
            places.append(site.where(session))
        return " ".join(places)

    # The session stays there, another one does not.
    answer = site.ask(lambda: f"{view()} {site.where()}")
    assert answer.body == "replica primary primary primary primary replica"
    assert "DB-Position" not in answer.headers


def test_by_hand_as_a_decorator(site: Site) -> None:
    assert site.ask(primary()(site.where)).body == "primary"
    assert site.ask(site.where).body == "replica"


def test_what_was_read_by_hand_is_found_again_after_a_commit(site: Site) -> None:
    site.pair.pause_replay()
    site.ask(site.add, "POST")

    def view() -> str:
        with site.session() as session:
            with primary():
                item = session.scalars(select(Item)).one()
            session.commit()
            return item.name

    assert site.ask(view).body == "anvil"


def test_a_two_phase_session_has_the_primary(site: Site) -> None:
    def view() -> str:
        with site.session(twophase=True) as session:
            return site.where(session)

    assert site.ask(view).body == "primary"
    assert "again" not in site.replicas.stats()["primary"]


def test_commit_then_attribute_finds_what_the_replica_has_not_got(site: Site) -> None:
    site.pair.pause_replay()
    assert site.ask(site.add).body == "anvil"
