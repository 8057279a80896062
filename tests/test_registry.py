from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import psycopg2
import pytest
from sqlalchemy import URL, CreateEnginePlugin, Engine, create_engine, event, text
from sqlalchemy.dialects import plugins
from sqlalchemy.dialects import registry as dialects
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import NullPool, QueuePool

from wsgi_dbguard import registry
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.link import KEY, Link

MakeEngine = Callable[..., Engine]


@pytest.fixture
def new_links() -> Iterator[Callable[[], set[Link]]]:
    """The links that the test has made and that are still known."""
    before = set(registry.links)
    yield lambda: registry.links - before
    gc.collect()
    assert registry.links - before == set()


@pytest.fixture
def listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_listeners", [])


def test_an_engine_is_known_from_its_creation_until_it_is_collected() -> None:
    engine = create_engine("sqlite://")
    assert engine in registry.engines
    reference = weakref.ref(engine)
    del engine
    gc.collect()
    assert reference() is None
    assert all(each.url.drivername for each in registry.engines)


def test_engines_are_told_in_the_order_in_which_they_were_made(make_engine: MakeEngine, listeners: None) -> None:
    made = [make_engine("sqlite://") for _ in range(20)]
    told: list[Engine] = []
    registry.on_engine(told.append)
    assert [each for each in told if each in made] == made


def test_an_engines_own_creation_hooks_still_run(make_engine: MakeEngine) -> None:
    created: list[Engine] = []

    class Dialect(SQLiteDialect_pysqlite):
        supports_statement_cache = True

        @classmethod
        def engine_created(cls, engine: Engine) -> None:
            super().engine_created(engine)
            created.append(engine)

    class Plugin(CreateEnginePlugin):
        def update_url(self, url: URL) -> URL:
            return url

        def engine_created(self, engine: Engine) -> None:
            created.append(engine)

    dialects.impls["sqlite.hooked"] = lambda: Dialect
    plugins.impls["hooked"] = lambda: Plugin
    try:
        engine = make_engine("sqlite+hooked://", plugins=["hooked"])
    finally:
        del dialects.impls["sqlite.hooked"], plugins.impls["hooked"]
    assert created == [engine, engine]
    assert engine in registry.engines


@pytest.mark.usefixtures("listeners")
def test_a_listener_is_told_of_each_engine_old_and_new_once(make_engine: MakeEngine) -> None:
    old = make_engine("sqlite://")
    told: list[Engine] = []
    registry.on_engine(told.append)
    new = make_engine("sqlite://")
    assert [told.count(old), told.count(new)] == [1, 1]


def test_a_link_lives_from_connect_to_close(
    make_engine: MakeEngine, postgres: PostgreSQL, driver: str, new_links: Callable[[], set[Link]]
) -> None:
    engine = make_engine(postgres.url(driver), pool_size=1)
    assert not new_links()
    with engine.connect() as connection:
        (link,) = new_links()
        assert connection.connection.info[KEY] is link
        connection.invalidate()
        assert not new_links()
        connection.execute(text("select 1"))
        (other,) = new_links()
        assert other is not link
        connection.commit()
    assert new_links() == {other}
    with engine.connect(), engine.connect():  # the second one does not fit into the pool
        assert len(new_links()) == 2
    assert len(new_links()) == 1
    engine.dispose()
    assert not new_links()


def test_a_recycled_connection_gets_a_link_of_its_own(
    make_engine: MakeEngine, postgres: PostgreSQL, new_links: Callable[[], set[Link]]
) -> None:
    engine = make_engine(postgres.url(), pool_recycle=0)
    engine.connect().close()
    (first,) = new_links()
    engine.connect().close()
    (second,) = new_links()
    assert second is not first
    engine.dispose()


def test_a_detached_connection_is_known_until_it_is_closed(
    make_engine: MakeEngine, postgres: PostgreSQL, driver: str, new_links: Callable[[], set[Link]]
) -> None:
    engine = make_engine(postgres.url(driver), pool_size=1)
    connection = engine.connect()
    (link,) = new_links()
    connection.detach()
    engine.connect().close()
    assert link in new_links()
    connection.close()
    gc.collect()
    assert link not in new_links()
    engine.dispose()


def test_pools_without_an_engine_are_covered(postgres: PostgreSQL, new_links: Callable[[], set[Link]]) -> None:
    def connect() -> Any:
        return psycopg2.connect(postgres.url().replace("+psycopg2", ""))

    pool = QueuePool(connect)
    connection = pool.connect()
    assert len(new_links()) == 1
    connection.close()
    pool.dispose()
    assert not new_links()


def test_a_connection_that_a_listener_refuses_leaves_no_link(
    make_engine: MakeEngine, postgres: PostgreSQL, new_links: Callable[[], set[Link]]
) -> None:
    engine = make_engine(postgres.url())

    def refuse(connection: Any, entry: Any) -> NoReturn:
        raise ValueError("not this one")

    event.listen(engine, "connect", refuse)
    with pytest.raises(ValueError, match="not this one"):
        engine.connect()
    gc.collect()
    assert not new_links()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///{}/file.db"])
def test_links_do_not_pile_up_where_nothing_is_pooled(
    url: str, make_engine: MakeEngine, tmp_path: Any, new_links: Callable[[], set[Link]]
) -> None:
    engine = make_engine(url.format(tmp_path), poolclass=NullPool)
    for _ in range(20):
        engine.connect().close()
    assert not new_links()


BEFORE = {
    "nothing": "",
    "an engine": "kept = create_engine('sqlite://')",
    "a connection": "kept = create_engine('sqlite:///file::memory:?uri=true').connect()",
    "a pool": "kept = QueuePool(lambda: sqlite3.connect(':memory:')).connect()",
    "detached": "kept = QueuePool(lambda: sqlite3.connect(':memory:')).connect(); kept.detach()",
}


@pytest.mark.parametrize("before", BEFORE)
def test_what_was_there_before_the_import_is_found_and_where_nothing_was_nobody_looks(before: str) -> None:
    code = f"""
import gc, sqlite3
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool
{BEFORE[before]}
looked = []
walk = gc.get_referrers
gc.get_referrers = lambda *objects: looked.append(1) or walk(*objects)
from wsgi_dbguard import registry
print(len(looked), len(registry.engines), len(registry.links))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert tuple(map(int, told.split())) == {
        "nothing": (0, 0, 0),
        "an engine": (1, 1, 0),
        "a connection": (1, 1, 1),
    }.get(before, (1, 0, 1))


class Thing:
    pass


class Kind(Thing):
    pass


class Proxy:
    """As Flask's and werkzeug's proxies: asking for its class asks what it stands for, which may not be there."""

    stands_for: type[object]

    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("working outside of the application's context")


def test_instances_are_of_exactly_the_classes_and_proxies_are_not_asked() -> None:
    thing, kind, proxy = Thing(), Kind(), Proxy()
    proxy.stands_for = Thing
    assert any(each is proxy for each in gc.get_referrers(Thing))
    assert registry.instances(Thing) == [thing]
    assert registry.instances(Kind) == [kind]
    assert set(registry.instances(*registry.family(Thing))) == {thing, kind}


def test_frozen_instances_are_found_and_stay_frozen() -> None:
    thing = Thing()
    gc.freeze()
    try:
        assert registry.instances(Thing) == [thing]
        assert not any(each is thing for each in gc.get_objects())
    finally:
        gc.unfreeze()
