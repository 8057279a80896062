"""Which statements leave something behind? By their text, for PostgreSQL and for MySQL; when in doubt, they do.

What a request has committed on a real server is shown in test_replay.py.
"""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text

from wsgi_dbguard.request import Request, current
from wsgi_dbguard.transactions import commits_by_itself, only_reads, watch

READS = [
    "select 1",
    "  SELECT * FROM t WHERE id IN (1)",
    "/* a comment */ select 1",
    "-- a comment\n select 1",
    "(select 1) union (select 2)",
    "select 1;",
    "select 1 ;\n",
    "show all",
    "values (1)",
    "table t",
    "explain select 1",
    "with x as (select 1) select * from x",
    "select updated, deleted_at from calls",
]
WRITES = [
    "insert into t values (1)",
    "with x as (insert into t values (1) returning id) select * from x",
    "select * into u from t",
    "select * from t for update",
    "explain analyze delete from t",
    "select 1; delete from t",
    "update t set a = 1",
    "nonsense",
    "",
]


@pytest.mark.parametrize("statement", READS)
@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "sqlite"])
def test_what_plainly_reads(statement: str, dialect: str) -> None:
    assert only_reads(statement)
    assert not commits_by_itself(statement, dialect)


@pytest.mark.parametrize("statement", WRITES)
def test_what_may_write(statement: str) -> None:
    assert not only_reads(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "insert into t values (1)",
        "/* c */ UPDATE t SET a = 1",
        "delete from t",
        "merge into t using u on true when matched then delete",
        "savepoint a",
        "release savepoint a",
        "rollback to savepoint a",
        "set time_zone = 'x'",
        "with x as (insert into t values (1) returning id) select * from x",
    ],
)
@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb"])
def test_what_a_rollback_undoes_everywhere(statement: str, dialect: str) -> None:
    assert not commits_by_itself(statement, dialect)


@pytest.mark.parametrize(
    "statement",
    ["create table t (a int)", "ALTER TABLE t ADD b int", "drop table t", "truncate t", "grant all on t to u",
     "lock tables t write", "set autocommit = 1", "SET @@session.autocommit=1, @a = 2"],
)  # fmt: skip
def test_ddl_commits_in_mysql_and_not_in_postgresql(statement: str) -> None:
    assert commits_by_itself(statement, "mysql")
    assert commits_by_itself(statement, "mariadb")
    assert not commits_by_itself(statement, "postgresql")


@pytest.mark.parametrize(
    "statement",
    [
        "call noting()",
        "do $$ begin commit; end $$",
        "COMMIT",
        "/* c */ commit",
        "end",
        "begin",
        "start transaction",
        "prepare transaction 'x'",
        "commit prepared 'x'",
        "vacuum t",
        "insert into t values (1); commit",
        "select 1; commit",
        "nonsense",
        "",
    ],
)
@pytest.mark.parametrize("dialect", ["postgresql", "mysql"])
def test_what_may_commit_by_itself(statement: str, dialect: str) -> None:
    assert commits_by_itself(statement, dialect)


def test_a_prepared_statement_is_no_prepared_transaction() -> None:
    assert not commits_by_itself("prepare q as select 1", "postgresql")


def committed(statement: str, *, method: str = "POST", **options: str) -> tuple[int, bool]:
    """How many commits a request is told of that executes `statement` on SQLite, and whether one is pending."""
    engine = create_engine("sqlite://", execution_options=options)
    watch(engine)
    watch(engine)
    request = Request({"REQUEST_METHOD": method})
    with engine.connect() as connection:
        connection.execute(text("create table if not exists t (a int)"))
        connection.commit()
        token = current.set(request)
        try:
            connection.execute(text(statement))
            pending = connection in request.unfinished
            connection.commit()
        finally:
            current.reset(token)
    engine.dispose()
    assert request.statements == 1
    return request.commits, pending


def test_a_write_counts_at_its_commit() -> None:
    assert committed("insert into t values (1)") == (1, True)
    assert committed("insert into t values (1)", method="GET") == (1, True)


def test_a_read_counts_where_the_method_is_not_safe() -> None:
    assert committed("select 1", method="GET") == (0, False)
    assert committed("select 1") == (1, False)


def test_a_write_in_autocommit_counts_at_once() -> None:
    assert committed("insert into t values (1)", method="GET", isolation_level="AUTOCOMMIT") == (1, False)


def test_a_function_in_autocommit_counts_where_the_method_is_not_safe() -> None:
    assert committed("select abs(1)", method="GET", isolation_level="AUTOCOMMIT") == (0, False)
    assert committed("select abs(1)", isolation_level="AUTOCOMMIT") == (2, False)  # and the commit() that follows


def test_a_rollback_undoes_it() -> None:
    engine = create_engine("sqlite://")
    watch(engine)
    request = Request({"REQUEST_METHOD": "POST"})
    token = current.set(request)
    try:
        with engine.connect() as connection:
            connection.execute(text("savepoint a"))
            assert connection in request.unfinished
            connection.rollback()
            assert list(request.unfinished) == []
    finally:
        current.reset(token)
        engine.dispose()
    assert request.commits == 0


def test_connections_in_the_raw_are_counted() -> None:
    engine = create_engine("sqlite://")
    watch(engine)
    request = Request({})
    token = current.set(request)
    try:
        with engine.connect():
            pass
        assert request.unseen == 0
        engine.raw_connection().close()
        assert request.unseen == 1
    finally:
        current.reset(token)
        engine.dispose()


def test_nothing_is_noted_outside_a_request() -> None:
    engine = create_engine("sqlite://")
    watch(engine)
    with engine.begin() as connection:
        connection.execute(text("create table t (a int)"))
    engine.dispose()
