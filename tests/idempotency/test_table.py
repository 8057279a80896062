"""The table of the keys: how it is made, and purged."""

from __future__ import annotations

import re
import runpy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from wsgi_dbguard.idempotency import create_table, ddl, purge
from wsgi_dbguard.lab.mariadb import MariaDB

from .conftest import KEYS, Database, Shop, post, rows, site, url_of


def test_old_keys_are_purged_in_batches_but_not_those_in_use(shop: Shop, engine: Engine, database: Database) -> None:
    app = site(shop, engine)
    for number in range(7):
        post(app, f"k{number}")
    database.query(f"update {KEYS} set created = 1")
    post(app, "young")
    shop.before = lambda session: inside.append(purge(engine, older_than=60, batch=3))
    inside: list[int] = []
    post(app, "running")
    assert inside == [7]
    assert rows(database) == 2
    shop.before = lambda session: inside.append(purge(engine, older_than=0))
    post(app, "another")
    assert rows(database) == 1  # that one
    with pytest.raises(ValueError, match="older_than"):
        purge(engine, older_than=-1)


def test_two_may_purge_at_once(database: Database, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(url_of(database), isolation_level="SERIALIZABLE")
    numbers = "seq_1_to_2000" if isinstance(database, MariaDB) else "generate_series(1, 2000) as of(seq)"
    database.query(
        f"insert into {KEYS} (id, owner, fingerprint, created, expires) "
        f"select concat('k', seq), '', '', 1, 0 from {numbers}"
    )
    with ThreadPoolExecutor(3) as threads:
        purges = [threads.submit(purge, engine, older_than=60, batch=50) for _ in range(3)]
    assert sum(each.result() for each in purges) == 2000
    assert rows(database) == 0


def test_the_table_is_made_by_a_call_as_well(engine: Engine, shop: Shop, database: Database) -> None:
    create_table(engine, "made")
    create_table(engine, "made")
    try:
        app = site(shop, engine, table="made")
        assert [post(app).text, post(app).text] == ["apple 1", "apple 1"]
    finally:
        database.query("drop table made")


def test_workers_that_start_at_once_all_make_it(make_engine: Callable[..., Engine], database: Database) -> None:
    engines = [make_engine(url_of(database)) for _ in range(4)]
    for each in engines:
        each.connect().close()
    together = threading.Barrier(len(engines))

    def make(engine: Engine) -> None:
        together.wait(60)
        create_table(engine, "made")

    with ThreadPoolExecutor(len(engines)) as threads:
        for _ in range(5):
            list(threads.map(make, engines))
            database.query("drop table made")


def test_the_command_prints_the_statements(run_python: Callable[..., str]) -> None:
    program = """
import runpy, sys
for dialect in ("postgresql", "mariadb", "mysql"):
    sys.argv[1:] = [dialect]
    runpy.run_module("wsgi_dbguard.idempotency", run_name="__main__")
"""
    printed = run_python(program)
    expected = "\n".join([*map(ddl, ("postgresql", "mariadb", "mysql")), ""])
    # SQLAlchemy puts the options of MySQL's tables in an order that differs from process to process.
    assert sorted(re.split(r"[\s)]+", printed)) == sorted(re.split(r"[\s)]+", expected))


def test_the_command_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["", "--help"])
    with pytest.raises(SystemExit, match=r"not for --help\n\n.*postgresql\|mariadb\|mysql"):
        runpy.run_module("wsgi_dbguard.idempotency", run_name="__main__")
