"""The guard by URL alone: settings are taken, refused before an engine exists, and gone from the URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, engine_from_config, make_url, text

from wsgi_dbguard import GuardConfig, SettingError, guard, registry
from wsgi_dbguard.guards import guards
from wsgi_dbguard.lab.postgres import PostgreSQL

MakeEngine = Callable[..., Engine]
NOWHERE = make_url("postgresql+psycopg2://user@127.0.0.1:1/nowhere?application_name=x")


def with_query(**query: str | tuple[str, ...]) -> URL:
    return NOWHERE.update_query_dict({"plugin": "dbguard", **query})


def configuration(engine: Engine) -> GuardConfig | None:
    return next((each.config for each in guards() if each.dialect is engine.dialect), None)


def test_an_engine_without_the_plugin_is_not_guarded(make_engine: MakeEngine) -> None:
    assert configuration(make_engine(NOWHERE)) is None


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (with_query(), {}),
        (str(with_query()), {}),
        (NOWHERE, {"plugins": ["dbguard"]}),
        (with_query(), {"plugins": ["dbguard"]}),
    ],
)
def test_an_engine_is_guarded_by_url_or_keyword(make_engine: MakeEngine, url: Any, options: dict[str, Any]) -> None:
    engine = make_engine(url, **options)
    assert configuration(engine) == GuardConfig()
    assert engine.url == NOWHERE


def test_settings_come_in_the_url(make_engine: MakeEngine) -> None:
    url = with_query(
        dbguard_ping_after="30", dbguard_keepalive="30,10,2", dbguard_idle_timeout="none", dbguard_evict_readonly="0"
    )
    engine = make_engine(url)
    expected = GuardConfig(ping_after=30.0, keepalive=(30, 10, 2), idle_timeout=None, evict_readonly=False)
    assert configuration(engine) == expected
    assert engine.url == NOWHERE  # nothing is left that would go to the driver


def test_a_list_may_come_as_a_repeated_argument(make_engine: MakeEngine) -> None:
    assert make_url("x://?dbguard_keepalive=9&dbguard_keepalive=8&dbguard_keepalive=7").query
    config = configuration(make_engine(with_query(dbguard_keepalive=("9", "8", "7"))))
    assert config == GuardConfig(keepalive=(9, 8, 7))


def test_settings_come_as_keywords(make_engine: MakeEngine) -> None:
    engine = make_engine(
        NOWHERE, plugins=["dbguard"], dbguard_ping_after=30.0, dbguard_keepalive=(30, 10, 2), pool_size=3
    )
    assert configuration(engine) == GuardConfig(ping_after=30.0, keepalive=(30, 10, 2))


def test_settings_come_from_a_configuration_file(make_engine: MakeEngine) -> None:
    engine = engine_from_config({"sqlalchemy.url": str(with_query(dbguard_ping_after="30"))})
    assert configuration(engine) == GuardConfig(ping_after=30.0)


def test_keyword_comes_before_url_before_environment(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_DBGUARD_PING_AFTER", "1")
    monkeypatch.setenv("WSGI_DBGUARD_PING_TIMEOUT", "1")
    monkeypatch.setenv("WSGI_DBGUARD_USER_TIMEOUT", "1")
    engine = make_engine(with_query(dbguard_ping_after="2", dbguard_ping_timeout="2"), dbguard_ping_after=3.0)
    assert configuration(engine) == GuardConfig(ping_after=3.0, ping_timeout=2.0, user_timeout=1.0)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"dbguard_ping_after": "soon"}, r"^dbguard_ping_after='soon': must be a number of seconds"),
        ({"dbguard_ping_timeout": "0"}, r"^dbguard_ping_timeout='0': must be a number of seconds above 0"),
        ({"dbguard_keepalive": ("9", "8")}, r"^dbguard_keepalive='9,8': must be three whole numbers"),
        ({"dbguard_pingafter": "1"}, r"^unknown setting dbguard_pingafter; there are: ping_after, "),
    ],
)
def test_an_impossible_url_is_refused_before_an_engine_exists(query: dict[str, str], message: str) -> None:
    before = set(registry.engines)
    with pytest.raises(SettingError, match=message):
        create_engine(with_query(**query))
    assert set(registry.engines) <= before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dbguard_ping_after": "30"}, r"^ping_after='30': must be a number of seconds"),
        ({"dbguard_ping_after": -1}, r"^ping_after=-1: must be a number of seconds of at least 0"),
        ({"dbguard_pingafter": 1.0}, r"^unknown setting pingafter; there are: ping_after, "),
    ],
)
def test_an_impossible_keyword_is_refused_before_an_engine_exists(settings: dict[str, Any], message: str) -> None:
    before = set(registry.engines)
    with pytest.raises(SettingError, match=message):
        create_engine(NOWHERE, plugins=["dbguard"], **settings)
    assert set(registry.engines) <= before


def test_without_the_plugin_its_keywords_are_unknown_to_sqlalchemy() -> None:
    with pytest.raises(TypeError, match="dbguard_ping_after"):
        create_engine(NOWHERE, dbguard_ping_after=30.0)


def test_other_settings_for_the_same_engine_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(with_query(dbguard_ping_after="30"))
    assert guard(engine).config.ping_after == 30.0
    with pytest.raises(SettingError, match="other settings"):
        guard(engine, ping_after=31.0)


def test_dead_connections_are_replaced(postgres: PostgreSQL, driver: str, make_engine: MakeEngine) -> None:
    engine = make_engine(postgres.url(driver, plugin="dbguard", dbguard_ping_after="0"))
    for _ in range(3):
        with engine.connect() as connection:
            pid = connection.scalar(text("select pg_backend_pid()"))
        postgres.terminate(pid or 0)
    stats = guard(engine).stats()
    assert (stats["connects"], stats["replaced"]) == (3, {"dead": 2})
