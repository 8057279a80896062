"""`guard` and `guard_all`: each engine has one guard, with the settings that were asked for, and a name of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from wsgi_dbguard import DBGuard, GuardConfig, SettingError, guard
from wsgi_dbguard.guards import guard_all, guards
from wsgi_dbguard.lab.postgres import PostgreSQL

MakeEngine = Callable[..., Engine]
Fill = Callable[[Engine, int], list[int]]
NOWHERE = "postgresql+psycopg2://user:secret@127.0.0.1:1/nowhere"


def app(environ: Any, start_response: Any) -> list[bytes]:
    return []


def test_guarding_twice_gives_the_same_guard(make_engine: MakeEngine) -> None:
    engine = make_engine(NOWHERE)
    first = guard(engine, ping_after=5.0)
    assert guard(engine) is first
    assert guard(engine, ping_after=5.0) is first
    assert guard(engine, config=GuardConfig(ping_after=5.0)) is first
    assert first.config == GuardConfig(ping_after=5.0)


def test_guarding_twice_with_other_settings_is_refused_and_changes_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine(NOWHERE)
    first = guard(engine, ping_after=5.0)
    others: list[dict[str, Any]] = [{"ping_after": 6.0}, {"ping_timeout": 1.0}, {"config": GuardConfig()}]
    for other in others:
        with pytest.raises(SettingError, match=r"guarded with other settings already: .*ping_after=5.0"):
            guard(engine, **other)
    assert guard(engine) is first
    assert first.config.ping_after == 5.0


def test_guarded_twice_and_from_many_threads_a_checkout_is_checked_once(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    engine = make_engine(postgres.url(driver))
    together = threading.Barrier(16, timeout=60.0)

    def work(_: int) -> Any:
        together.wait()
        return guard(engine, ping_after=0.0)

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(work, range(16)))) == 1
    for _ in range(4):
        fill(engine, 1)
    stats = guard(engine).stats()
    assert (stats["checkouts"], stats["pings"]) == (4, 3)


@pytest.mark.parametrize("thing", [None, NOWHERE, object(), Engine, 5])
def test_only_engines_are_guarded(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"^guard\(\) takes a SQLAlchemy Engine, not \w+$"):
        guard(thing)


def test_an_async_engine_is_refused_with_a_hint_and_its_inner_engine_left_alone() -> None:
    engine = create_async_engine("postgresql+psycopg://127.0.0.1:1/nowhere")
    with pytest.raises(TypeError, match=r"not AsyncEngine; give its \.sync_engine$"):
        guard(engine)  # type: ignore[arg-type]
    listeners = list(engine.sync_engine.pool.dispatch.checkout)
    assert guard(engine.sync_engine) is guard(engine.sync_engine)
    assert list(engine.sync_engine.pool.dispatch.checkout) == listeners


def test_config_and_keywords_together_are_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(TypeError, match="either config or single settings"):
        guard(make_engine(NOWHERE), config=GuardConfig(), ping_after=5.0)
    with pytest.raises(TypeError, match="config must be a GuardConfig, not dict"):
        guard(make_engine(NOWHERE), config={"ping_after": 5.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{"ping_after": -1.0}, {"ping_timeout": 0.0}, {"pingafter": 1.0}, {"keepalive": 5}]
)
def test_an_impossible_setting_is_refused_and_the_engine_left_alone(
    make_engine: MakeEngine, settings: dict[str, Any]
) -> None:
    engine = make_engine(NOWHERE)
    with pytest.raises(SettingError, match=next(iter(settings))):
        guard(engine, **settings)
    assert guard(engine, ping_after=7.0).config.ping_after == 7.0


def test_settings_come_from_the_environment(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_DBGUARD_PING_AFTER", "5")
    monkeypatch.setenv("WSGI_DBGUARD_IDLE_TIMEOUT", "none")
    assert guard(make_engine(NOWHERE)).config == GuardConfig(ping_after=5.0, idle_timeout=None)
    assert guard(make_engine(NOWHERE), ping_after=6.0).config == GuardConfig(ping_after=6.0, idle_timeout=None)
    assert guard(make_engine(NOWHERE), config=GuardConfig()).config == GuardConfig()
    monkeypatch.setenv("WSGI_DBGUARD_PING_AFTER", "soon")
    with pytest.raises(SettingError, match="WSGI_DBGUARD_PING_AFTER='soon'"):
        guard(make_engine(NOWHERE))


# Names


def test_engines_of_one_url_have_guards_of_different_names(make_engine: MakeEngine) -> None:
    first, second, third = (guard(make_engine(NOWHERE + "?application_name=names")) for _ in range(3))
    assert "secret" not in first.name
    assert first.name == "postgresql+psycopg2://user:***@127.0.0.1:1/nowhere?application_name=names"
    assert second.name == first.name + " #2"
    assert third.name == first.name + " #3"
    assert repr(second).startswith(f"<PoolGuard {second.name} pid=")


def test_a_password_among_the_arguments_of_a_url_is_in_no_name(make_engine: MakeEngine) -> None:
    engine = make_engine("postgresql+psycopg2:///nowhere?host=127.0.0.1&password=swordfish&sslpassword=swordfish")
    assert guard(engine).name == "postgresql+psycopg2:///nowhere?host=127.0.0.1"


def test_a_pool_with_a_logging_name_gives_it_to_its_guard(make_engine: MakeEngine) -> None:
    engines = [make_engine(NOWHERE, pool_logging_name="reports") for _ in range(2)]
    assert [guard(engine).name for engine in engines] == ["reports", "reports #2"]
    assert guard(engines[0]).name == "reports"


def test_each_pool_of_an_application_has_its_line_in_the_statistics(make_engine: MakeEngine) -> None:
    application = DBGuard(app, make_engine(NOWHERE), make_engine(NOWHERE))
    assert len(application.stats()["pools"]) == 2


# All engines. What these leave behind is undone by the fixture.


@pytest.mark.usefixtures("every_engine")
def test_an_application_guards_the_engines_that_there_are_and_those_to_come(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    before = make_engine(postgres.url(driver))
    fill(before, 3)
    DBGuard(app, ping_after=7.0)
    after = make_engine(postgres.url(driver))
    for engine in (before, after):
        postgres.terminate(*fill(engine, 3))
        assert len(fill(engine, 3)) == 3
        assert guard(engine) in guards()
        assert guard(engine).config.ping_after == 7.0  # to ask for it changes nothing
    assert guard(after).stats()["connects"] == 6


@pytest.mark.usefixtures("every_engine")
def test_an_engine_guarded_by_name_keeps_its_settings_whenever_it_was(make_engine: MakeEngine) -> None:
    earlier, later = make_engine(NOWHERE), make_engine(NOWHERE)
    guard(earlier, ping_after=1.0)
    guard_all(GuardConfig(ping_after=2.0))
    made = guard(later, ping_after=3.0)
    assert guard(earlier).config.ping_after == 1.0
    assert made.config.ping_after == 3.0
    with pytest.raises(SettingError, match="other settings"):
        guard(later, ping_after=4.0)
    last = make_engine(NOWHERE)
    assert next(each for each in guards() if each.dialect is last.dialect).config.ping_after == 2.0


@pytest.mark.usefixtures("every_engine")
def test_settings_of_an_engine_that_was_guarded_with_all_others_hold_for_its_connections(
    postgres: PostgreSQL, driver: str, make_engine: MakeEngine, fill: Fill
) -> None:
    guard_all(GuardConfig())
    engine = make_engine(postgres.url(driver))
    fill(engine, 1)
    pool_guard = guard(engine, ping_after=0.0)
    fill(engine, 1)
    assert pool_guard.stats()["pings"] == 1


@pytest.mark.usefixtures("every_engine")
def test_guarding_all_engines_twice_with_other_settings_is_refused() -> None:
    guard_all(GuardConfig(ping_after=2.0))
    guard_all(GuardConfig(ping_after=2.0))
    with pytest.raises(SettingError, match=r"all engines of this process are guarded with other settings"):
        guard_all(GuardConfig(ping_after=3.0))


IMPORTED_LATE = """
import logging, sys
logging.disable()
from sqlalchemy import create_engine, text
engine = create_engine(sys.argv[1])
with engine.connect() as connection:
    pid = connection.scalar(text("select pg_backend_pid()"))
from wsgi_dbguard import DBGuard, guard
DBGuard(lambda environ, start_response: [])
other = create_engine(sys.argv[1], isolation_level="AUTOCOMMIT", plugins=[])
with other.connect() as connection:
    connection.execute(text("select pg_terminate_backend(:pid, 10000)"), {"pid": pid})
with engine.connect() as connection:
    print(connection.scalar(text("select 1")))
print(guard(engine).stats()["replaced"])
engine.dispose()
other.dispose()
"""


def test_an_engine_made_before_the_package_was_imported_is_guarded(
    postgres: PostgreSQL, driver: str, run_python: Callable[..., str]
) -> None:
    assert run_python(IMPORTED_LATE, postgres.url(driver)) == "1\n{'dead': 1}\n"


FORKED = """
import logging, os, sys, warnings
logging.disable()
warnings.simplefilter("ignore")
from sqlalchemy import create_engine, text
from wsgi_dbguard import guard
engine = create_engine(sys.argv[1])
pool_guard = guard(engine, idle_timeout=None, max_lifetime=None)
engine.connect().close()
child = os.fork()
if not child:
    engine.connect().close()
    stats = pool_guard.stats()
    print(stats["pid"] == os.getpid(), stats["connects"], stats["checkouts"], stats["connections"], flush=True)
    os._exit(0)
os.waitpid(child, 0)
stats = pool_guard.stats()
print(stats["pid"] == os.getpid(), stats["connects"], stats["checkouts"], stats["connections"])
engine.dispose()
"""


def test_a_forked_child_counts_from_zero(postgres: PostgreSQL, driver: str, run_python: Callable[..., str]) -> None:
    assert run_python(FORKED, postgres.url(driver)) == "True 1 1 1\nTrue 1 1 1\n"


def test_a_guard_of_sqlite_is_kept_with_its_engine(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'file.db'}")
    pool_guard = guard(engine)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    assert pool_guard in guards()
    assert guard(engine) is pool_guard
