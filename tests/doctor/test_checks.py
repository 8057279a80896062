"""Each check by made-up facts: what makes its finding, and what is just not enough for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wsgi_dbguard.doctor import checks
from wsgi_dbguard.doctor.facts import (
    AppFacts,
    Facts,
    MakerFacts,
    OpenedFacts,
    ServerFacts,
    SessionFacts,
    decode,
    encode,
)
from wsgi_dbguard.doctor.kinds import KINDS, SEVERITIES, at_least

from .facts import GUARD, app, database, engine, gunicorn, ids, uwsgi

OPENED = [OpenedFacts(engine=0, place="shop.py:9 in <module>")]
WAIT_TIMEOUT: dict[str, Any] = {"idle_limit": 900.0, "idle_limit_name": "wait_timeout"}


def bare(*engines: Any, **differences: Any) -> AppFacts:
    """An application without the guard."""
    return app(*(engines or [engine(guarded=False, pre_ping=True)]), guarded=False, **differences)


def test_a_sound_deployment_has_no_findings() -> None:
    for server in (gunicorn(), uwsgi()):
        assert ids(server=server) == []
    assert ids(bare()) == []


@pytest.mark.parametrize(
    ("differences", "found"),
    [
        ({}, ["DBG-S1-unchecked"]),
        ({"recycle": 300.0}, ["DBG-S1-unchecked"]),
        ({"pre_ping": True}, []),
        ({"dialect": "sqlite"}, []),
        ({"pool": "NullPool"}, ["DBG-POOL-null"]),
        ({"pool": "StaticPool", "dialect": "sqlite"}, []),
    ],
)
def test_s1_connections_that_nobody_checks(differences: dict[str, Any], found: list[str]) -> None:
    assert ids(bare(engine(guarded=False, **differences))) == found


@pytest.mark.parametrize(
    ("application", "server", "found"),
    [
        (bare(opened=OPENED), gunicorn(preloads=True, hooks=False), ["DBG-S2-shared"]),
        (bare(opened=OPENED), gunicorn(preloads=True, hooks=False, post_fork="cut"), ["DBG-S2-recipe"]),
        (bare(opened=OPENED), gunicorn(preloads=True, hooks=False, post_fork="hook"), ["DBG-S2-own"]),
        (bare(opened=OPENED, forks_noticed="cut"), uwsgi(preloads=True, hooks=False), ["DBG-S2-recipe"]),
        (bare(opened=OPENED, forks_noticed="hook"), uwsgi(preloads=True, hooks=False), ["DBG-S2-own"]),
        (bare(opened=OPENED), gunicorn(preloads=True), ["DBG-S2-idle"]),
        (app(opened=OPENED), gunicorn(preloads=True, hooks=False), ["DBG-S2-idle"]),  # Python sees gunicorn's forks
        (app(opened=OPENED), gunicorn(preloads=False, hooks=False), []),
        (bare(opened=OPENED), uwsgi(preloads=True, hooks=False), ["DBG-S2-shared"]),
        (bare(opened=OPENED), uwsgi(preloads=True), ["DBG-S2-idle"]),
        (app(opened=OPENED), uwsgi(preloads=True, hooks=False), ["DBG-S2-hook"]),
        (app(), uwsgi(preloads=True, hooks=False), ["DBG-S2-hook"]),
        (bare(), uwsgi(preloads=True, hooks=False), ["DBG-S2-lazy"]),
        (bare(), uwsgi(preloads=True, hooks=False, threads=1), []),
        (bare(opened=OPENED), uwsgi(), []),
        (bare(threads=["beat"]), gunicorn(preloads=True), ["DBG-S2-threads"]),
        (bare(threads=["beat"]), gunicorn(), []),
    ],
)
def test_s2_what_is_there_before_the_fork(application: AppFacts, server: ServerFacts, found: list[str]) -> None:
    assert ids(application, server) == found


def test_s2_without_a_servers_configuration_is_a_matter_of_the_server() -> None:
    found = checks.findings(Facts(app=app(opened=OPENED)))
    assert [each.kind.id for each in found] == ["DBG-S2-import"]
    assert "opened at shop.py:9 in <module>" in found[0].seen


@pytest.mark.parametrize(
    ("differences", "limits", "found"),
    [
        ({}, WAIT_TIMEOUT, ["DBG-S3-idle"]),
        ({"recycle": 900.0}, WAIT_TIMEOUT, ["DBG-S3-idle"]),
        ({"recycle": 600.0}, WAIT_TIMEOUT, ["DBG-S1-unchecked"]),
        ({"pre_ping": True}, WAIT_TIMEOUT, []),
        ({"pool": "NullPool"}, {"pooler": "session", **WAIT_TIMEOUT}, []),
        ({"recycle": 600.0}, {"transaction_limit": 60.0}, ["DBG-S1-unchecked"]),
        ({"recycle": 600.0, "resets": False}, {"transaction_limit": 60.0}, ["DBG-S3-idle"]),
    ],
)
def test_s3_the_servers_timeouts_against_pool_recycle(
    differences: dict[str, Any], limits: dict[str, Any], found: list[str]
) -> None:
    assert ids(bare(engine(guarded=False, **differences)), None, database(**limits)) == found


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, []),
        ({"idle_timeout": 1000.0}, ["DBG-S3-guard"]),
        ({"idle_timeout": None}, ["DBG-S3-guard"]),
        ({"idle_timeout": None, "max_lifetime": 800.0}, []),
    ],
)
def test_s3_the_servers_timeouts_against_the_guard(settings: dict[str, Any], found: list[str]) -> None:
    assert ids(app(engine(guard={**GUARD, **settings})), None, database(**WAIT_TIMEOUT)) == found


def test_s4_a_session_of_everybody_is_named() -> None:
    application = bare(sessions=[SessionFacts(made_at="db.py:3 in <module>", name="db.session", in_transaction=True)])
    (found,) = checks.findings(Facts(app=application))
    assert found.kind.id == "DBG-S4-session"
    assert found.seen.startswith("db.session is a Session made at db.py:3 in <module>, in a transaction already")
    assert ids(bare(sessions=[SessionFacts(made_at="db.py:3 in <module>", left_over=True)])) == ["DBG-S4-closed"]


@pytest.mark.parametrize(
    ("maker", "standby", "found"),
    [
        (MakerFacts(made_at="db.py:3", splits=True), True, ["DBG-S5-expire"]),
        (MakerFacts(made_at="db.py:3", splits=True, expires=False), True, ["DBG-S5-split"]),
        (MakerFacts(made_at="db.py:3", splits=True, routed=True), True, []),
        (MakerFacts(made_at="db.py:3"), True, []),
        (MakerFacts(made_at="db.py:3", splits=True), False, []),
    ],
)
def test_s5_reads_from_a_replica(maker: MakerFacts, standby: bool, found: list[str]) -> None:
    application = app(engine(0), engine(1), makers=[maker])
    assert ids(application, None, database(0), database(1, standby=standby)) == found


@pytest.mark.parametrize(
    ("stale_at", "versioned", "found"), [(["shop.py:3"], 0, ["DBG-S6-version"]), (["shop.py:3"], 1, []), ([], 0, [])]
)
def test_s6_stale_updates(stale_at: list[str], versioned: int, found: list[str]) -> None:
    assert ids(app(stale_at=stale_at, versioned=versioned)) == found


@pytest.mark.parametrize(
    ("server", "engines", "found"),
    [
        (gunicorn(processes=6, threads=4), 1, []),  # 6 x 15 = 90 of 97
        (gunicorn(processes=7, threads=4), 1, ["DBG-POOL-burst"]),  # 105
        (gunicorn(processes=6, threads=4), 2, ["DBG-POOL-burst"]),  # 180, of the same server
        (gunicorn(processes=25, threads=4), 1, ["DBG-POOL-limit"]),  # 100 threads at work
        (gunicorn(processes=24, threads=4), 1, ["DBG-POOL-burst"]),  # 96
        (gunicorn(processes=13, threads=4), 2, ["DBG-POOL-limit"]),  # 104
    ],
)
def test_all_pools_against_max_connections(server: ServerFacts, engines: int, found: list[str]) -> None:
    numbers = range(engines)
    assert ids(app(*map(engine, numbers)), server, *map(database, numbers)) == found


def test_engines_of_two_servers_do_not_add_up() -> None:
    application = app(engine(0), engine(1, server="postgresql other.example:5432"))
    assert ids(application, gunicorn(processes=6), database(0), database(1)) == []


def test_behind_a_pooler_the_servers_limit_is_the_poolers() -> None:
    assert ids(app(), gunicorn(processes=50), database(pooler="transaction")) == []


@pytest.mark.parametrize(
    ("differences", "threads", "found"),
    [
        ({}, 15, []),
        ({}, 16, ["DBG-POOL-threads"]),
        ({"max_overflow": -1}, 16, []),
        ({"pool_size": 0}, 16, []),
        ({"pool_size": 16}, 16, []),
    ],
)
def test_a_pool_that_is_smaller_than_the_threads(differences: dict[str, Any], threads: int, found: list[str]) -> None:
    assert ids(app(engine(**differences)), gunicorn(processes=1, threads=threads)) == found


@pytest.mark.parametrize(
    ("differences", "facts", "found"),
    [
        ({"pre_ping": True}, {}, ["DBG-POOL-ping"]),
        ({"pool": "NullPool"}, {}, ["DBG-POOL-null"]),
        ({"pool": "NullPool"}, {"pooler": "transaction"}, []),
        ({"autocommit_argument": "autocommit=true"}, {}, ["DBG-POOL-autocommit"]),
        ({}, {"autocommit": True}, ["DBG-POOL-autocommit"]),
        ({}, {"autocommit": True, "standby": True}, []),
        ({}, {"prepared_fails": True, "pooler": "transaction"}, ["DBG-DB-prepared"]),
        ({}, {"tls": False}, ["DBG-DB-tls"]),
        ({}, {"tls": False, "remote": False}, []),
        ({}, {"tls": None}, []),
        ({}, {"error": "no route to host"}, ["DBG-DB-unreachable"]),
    ],
)
def test_one_engine_and_its_database(differences: dict[str, Any], facts: dict[str, Any], found: list[str]) -> None:
    assert ids(app(engine(**differences)), None, database(**facts)) == found


@pytest.mark.parametrize(
    ("settings", "pool_timeout", "timeout", "found"),
    [
        ({}, 30.0, 60.0, []),
        ({}, 30.0, 30.0, []),
        ({}, 30.0, 20.0, ["DBG-TIME-pool"]),
        ({}, 5.0, 10.0, ["DBG-TIME-hold"]),
        ({}, 5.0, 11.0, []),
        ({"deadline": 60.0}, 30.0, 60.0, ["DBG-TIME-deadline"]),
        ({"deadline": 30.0}, 30.0, 60.0, []),
        ({"hold": 99.0, "deadline": 99.0}, 99.0, None, []),
    ],
)
def test_the_servers_patience_against_the_applications(
    settings: dict[str, Any], pool_timeout: float, timeout: float | None, found: list[str]
) -> None:
    application = app(engine(pool_timeout=pool_timeout), guard={**GUARD, **settings})
    for server in (uwsgi(timeout=timeout), gunicorn(timeout=timeout)):
        assert ids(application, server) == found


@pytest.mark.parametrize(
    ("application", "server", "found"),
    [
        (app(), uwsgi(enable_threads=None), []),
        (app(), uwsgi(enable_threads=None, version="2.0.26"), ["DBG-UWSGI-threads"]),
        (app(), uwsgi(enable_threads=None, version=""), ["DBG-UWSGI-threads"]),
        (app(), uwsgi(enable_threads=False), ["DBG-UWSGI-threads"]),
        (bare(), uwsgi(enable_threads=False), []),
        (bare(threads=["beat"]), uwsgi(enable_threads=False), ["DBG-UWSGI-threads"]),
        (app(), gunicorn(hooks=False, timeout=30.0), ["DBG-GUNICORN-abort"]),
        (app(), gunicorn(hooks=False), []),
    ],
)
def test_what_a_server_needs_besides(application: AppFacts, server: ServerFacts, found: list[str]) -> None:
    assert ids(application, server) == found


def test_no_engine_is_told() -> None:
    assert [each.kind.id for each in checks.findings(Facts(app=AppFacts(target="wsgi")))] == ["DBG-APP-engines"]


def test_every_kind_is_declared_once_made_in_one_place_and_tested_here() -> None:
    directory = Path(checks.__file__).parent
    made = re.findall(r'"(DBG-\w+-\w+)"', "".join(each.read_text() for each in sorted(directory.glob("*.py"))))
    assert sorted(made) == sorted(KINDS)
    tested = set(re.findall(r'"(DBG-\w+-\w+)"', Path(__file__).read_text()))
    assert tested == set(KINDS)
    assert {kind.severity for kind in KINDS.values()} == set(SEVERITIES)


def test_severities_are_in_order() -> None:
    assert at_least("error", "warning")
    assert at_least("warning", "warning")
    assert not at_least("info", "warning")
    assert not at_least("error", "never")


def test_facts_come_back_from_json_as_they_were() -> None:
    facts = Facts(app=app(opened=OPENED), server=uwsgi(), databases=[database()], unseen=["x"])
    assert decode(AppFacts, encode(facts)["app"]) == facts.app
    assert decode(ServerFacts, encode(facts)["server"]) == facts.server
