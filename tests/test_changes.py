"""What a statement leaves on its connection, by its text."""

from __future__ import annotations

from typing import Any

import pytest

from wsgi_dbguard.changes import COMMIT, DATABASE, ROLLBACK, changes
from wsgi_dbguard.statements import ANYTHING, touches

NAMES = ("character_set_client", "character_set_results", "character_set_connection", "collation_connection")
CHARACTERISTICS = ("default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable")
# What is undone begins with "-".
POSTGRESQL: dict[str, tuple[str, ...]] = {
    "SET search_path TO a": ("search_path",),
    "set session Statement_Timeout = '3s'": ("statement_timeout",),
    "set app.tenant = '5'": ("app.tenant",),
    "set local x = 1": (),
    "set transaction read only": (),
    "set constraints all deferred": (),
    "set session characteristics as transaction read only": CHARACTERISTICS,
    "set time zone 'UTC'": ("timezone",),
    "set names 'utf8'": ("client_encoding",),
    "set schema 'a'": ("search_path",),
    "set role x": ("role",),
    "set session authorization x": (ANYTHING,),
    "reset search_path": ("search_path",),
    "reset all": (ANYTHING,),
    "/* why */ set a = 1; -- and\nset b = 2": ("a", "b"),
    "select set_config('a.b', 'x, y', false)": ("a.b",),
    "select set_config('a.b', 'x', true), set_config('c', '1', false)": ("c",),
    "select set_config(name, value, false) from settings": (ANYTHING,),
    "create temp table if not exists pg_temp.mine (x int)": ("temp mine",),
    "create local temporary view mine as select 1": ("temp mine",),
    "create temp table mine on commit drop as select 1": (),
    "select * into temp mine from x": ("temp mine",),
    "create table if not exists pg_temp.mine (x int)": ("temp mine",),
    'create sequence "pg_temp".mine': ("temp mine",),
    "select 1 as a into pg_temp.mine": ("temp mine",),
    "create table mine as select * from x": (),
    "drop table public.mine, pg_temp.mine": ("-temp public.mine", "-temp mine"),
    "insert into temp values (1)": (),
    "select temp from weather": (),
    'drop table if exists mine, "yours" cascade': ("-temp mine", "-temp yours"),
    "listen jobs": ("listen jobs",),
    "unlisten *": ("-listen *",),
    "prepare p (int) as select $1": ("prepared p",),
    "prepare transaction 'x'": (COMMIT,),
    "deallocate p": ("-prepared p",),
    "deallocate all": ("-prepared *",),
    "declare c cursor with hold for select 1": ("cursor c",),
    "declare c cursor for select 1": (),
    "close c": ("-cursor c",),
    "discard plans": (),
    "discard temp": ("-temp *",),
    "discard all": ("-temp *", "-prepared *", "-listen *", "-lock *", "-cursor *", ANYTHING),
    "lock table x": (),
    "select pg_advisory_lock(1, 2)": ("lock 1, 2",),
    "select pg_try_advisory_lock_shared(42)": ("lock 42 shared",),
    "select pg_advisory_unlock_shared(42)": ("-lock 42 shared",),
    "select pg_advisory_lock(42), pg_advisory_lock(42) /* from here; twice */": ("lock 42", "lock 42"),
    "select pg_advisory_lock(g) from generate_series(1, 3) g": ("lock ?",),
    "select pg_advisory_lock(42) from x": ("lock ?",),
    "select pg_advisory_lock(hashtext('a'))": ("lock \"hashtext('a')\"",),
    "select pg_advisory_unlock(1, HashText('a')::bigint)": ("-lock 1, \"hashtext('a')\"",),
    "select pg_advisory_lock(hashtextextended(random()::text, 1))": ("lock ?",),
    "select pg_advisory_lock(hashtext('a') + 1)": ("lock ?",),
    "select pg_advisory_lock(hashtext('a') % length('b'))": ("lock ?",),
    "update pg_settings set setting = '3s' where name = 'statement_timeout'": (ANYTHING,),
    "with x as (update pg_catalog.pg_settings set setting = 'x' returning 1) select 1": (ANYTHING,),
    "update x set a = (select setting from pg_settings limit 1)": (),
    "select a := @b": (),
    "select '--', pg_advisory_lock(42)": ("lock 42",),
    "select '--', pg_advisory_lock(42)::text as one, true = %s": ("lock 42",),
    "select generate_series(1, 3), pg_advisory_lock(42)": ("lock ?",),
    "select pg_advisory_unlock(42), generate_series(1, 0)": (),
    "select pg_advisory_lock(42) union all select 1": ("lock ?",),
    "select \"set_config\"('a', 'x', false)": ("a",),
    "select pg_catalog.\"set_config\" /**/ ('a', 'x', false)": ("a",),
    "select set_config -- why\n ('a' /* it's */, 'x;', false)": ("a",),
    "select '/*'; set a = 1; select '*/'": ("a",),
    "select $q$ -- $q$; set a = 1": ("a",),
    "select $$ it's; set b = 1 $$; set a = 1": ("a",),
    "select a$b$c from x; set a = 1; select b$b$": ("a",),
    "select E'\\'; -- ', 1; set a = 1": ("a",),
    "select date'2020-01-01\\'; set a = 1 --'": ("a",),  # where a backslash means nothing in quotes
    "select '\\'; -- ', 1; set a = 1": ("a",),  # where it does
    "select pg_advisory_unlock(42), '\\''": (),
    "select 'it''s; set a = 1'": (),
    "select '; set a = 1": (ANYTHING,),
    "/* a /* b; */ c; set a = 1; */ set b = 1": ("b",),
    "-- a\rset a = 1": ("a",),
    "select data #> '{a}', data #>> '{b, c}', data ? '; set a' from x where data @> '{}' /* into @a */": (),
    "do $$begin perform set_config('a', 'x', false); end$$": (ANYTHING,),
    "do $$begin set a = 1; end$$": (ANYTHING,),
    "do $$begin set local a = 1; update x set a = 1; end$$": (),
    'drop table "mine;", yours': ("-temp yours",),
    'create temp table "mine;" (x int)': ("temp ~~~~~",),
    "explain analyze select 1 as a into temp mine": ("temp mine",),
    "select pg_advisory_unlock(g) from generate_series(1, 3) g": (),
    "select pg_advisory_unlock(42) where false": (),
    "select 1 -- pg_advisory_unlock(42)": (),
    "select pg_advisory_unlock(42) /* from a view */": ("-lock 42",),
    "insert into x values ('pg_advisory_unlock(42)')": (),
    "insert into x values ('; discard temp; drop table b')": (),
    "select pg_advisory_xact_lock(42)": (),
    "select pg_advisory_unlock(42)": ("-lock 42",),
    "select pg_advisory_unlock_all()": ("-lock *",),
    "commit": (COMMIT,),
    "rollback": (ROLLBACK,),
    "rollback to savepoint s": (ROLLBACK,),
    "savepoint s": (),
    "select 1": (),
    "update x set a = 1": (),
}
MYSQL: dict[str, tuple[str, ...]] = {
    "SET sql_mode = ''": ("sql_mode",),
    "set local sql_mode = ''": ("sql_mode",),
    "/*!40101 SET sql_mode = '' */": ("sql_mode",),
    "/*M!100100 set a = 1 */; /*!40101 SET @b = 1, c = 2 */;": ("a", "@b", "c"),
    "/* one; two */ set a = 1": ("a",),
    "set a = '*/5'": ("a",),
    "create temporary table db.mine (x int)": ("temp db.mine",),
    "drop table db.mine": ("-temp db.mine",),
    "set a = 1, @b := (select 1, 2), global c = 3, @@session.d = 'e,f', g = 1": ("a", "@b", "d"),
    "set @@global.a = 1, @@b = 1": ("b",),
    "set persist a = 1": (),
    "set names utf8mb4": NAMES,
    "set character set utf8mb4": NAMES,
    "set transaction read only": (),
    "set session transaction isolation level read committed": ("tx_isolation",),
    "set session transaction read only, isolation level serializable": ("tx_isolation", "tx_read_only"),
    "set transaction_isolation = 'serializable'": ("tx_isolation",),
    "set statement max_statement_time = 1 for select 1": (),
    "set insert_id = 7": (),
    "set timestamp = 7": (ANYTHING,),
    "set role x": (ANYTHING,),
    "use tenant": (DATABASE,),
    "lock tables a read": ("tables locked",),
    "flush tables with read lock": ("tables locked",),
    "flush tables": (),
    "unlock tables": ("-tables *",),
    "create temporary table mine (x int)": ("temp mine",),
    "drop temporary table `mine`": ("-temp mine",),
    "prepare p from 'select 1'": ("prepared p",),
    "drop prepare p": ("-prepared p",),
    "select get_lock('a', 10)": ("lock 'a'",),
    "do release_lock('a')": ("-lock 'a'",),
    "select release_all_locks()": ("-lock *",),
    "commit": (),
    "select @a := 1, @`b` := @c": ("@a", "@b"),
    "select id, name into @a, @B from x": ("@a", "@b"),
    "# why\nset a = 1": ("a",),
    "SET @colour = '#fff', SESSION time_zone = '+05:00'": ("@colour", "time_zone"),
    "SET @a = '--', SESSION sql_mode = ''": ("@a", "sql_mode"),
    "SET @a = 'x;y', SESSION time_zone = ''": ("@a", "time_zone"),
    "SET @a = \"it's; (\", SESSION time_zone = ''": ("@a", "time_zone"),
    "SET @a = 'it\\'s', SESSION time_zone = ''": ("@a", "time_zone"),
    "SET @a = '\\', SESSION time_zone = '', @b = ''": ("@a", "time_zone", "@b"),  # NO_BACKSLASH_ESCAPES
    "SET @`a b` = 1": (ANYTHING,),
    "set@a = 1": ("@a",),
    "set a = 5--1, b = 2": ("a", "b"),
    "set a = 5-- 1, b = 2": ("a",),
    "set a = 1 /*!99999 , b = 2 */": ("a", "b"),
    "unlock tables /*!99999 , b */": (),
    "select 'secret' from x where c = '#fff' into @v": ("@v",),
    "select '--', @w := 'secret'": ("@w",),
    "select 'secret' INTO/**/@q": ("@q",),
    "select 'secret' into # here\n@`q`": ("@q",),
    "select @'v' := 1": (ANYTHING,),
    "get diagnostics @p = row_count": ("@p",),
    "call p(@out, @@global.x)": ("@out",),
    "fetch c into @v": ("@v",),
    "load data infile 'x' into table y (a, @b)": ("@b",),
    "execute immediate 'set @x = 1'": (ANYTHING,),
    "begin not atomic set @x = 1; end": (ANYTHING,),
    "insert into x values ('get_lock(\"x\")', \"into @home\", '@x := y', '/*! set a = 1 */')": (),
    "insert into x values ('it\\'s; set a = 1', 'a@b.c; set b')": (),
    "select `get_lock`('a', 1)": ("lock 'a'",),
    "select get_lock('a', 1), sleep(1)": ("lock ?",),
    "select '#', @a": (),
}
CASES = [
    *(("postgresql", *case) for case in POSTGRESQL.items()),
    *(("mysql", *case) for case in MYSQL.items()),
    ("mariadb", "use tenant", (DATABASE,)),
]


def keys(statement: str, dialect: str, parameters: Any = None) -> tuple[str, ...]:
    return tuple(f"-{each.key}" if each.undo else each.key for each in changes(statement, parameters, dialect))


@pytest.mark.parametrize(("dialect", "statement", "expected"), CASES, ids=[f"{each[0]}: {each[1]}" for each in CASES])
def test_a_statement_changes(dialect: str, statement: str, expected: tuple[str, ...]) -> None:
    assert keys(statement, dialect) == expected
    assert touches(statement) or not expected


@pytest.mark.parametrize(
    ("arguments", "parameters", "expected"),
    [
        ("%(a)s, %(b)s, %(c)s", {"a": "x", "b": "y", "c": False}, ("x",)),
        ("%(a)s::VARCHAR, %(b)s::VARCHAR, %(c)s::BOOLEAN", {"a": "x", "b": "y", "c": True}, ()),
        ("%s, %s, %s", ("x", "y", False), ("x",)),
        ("%s, %s, %s", ("x", "y", True), ()),
        ("'x', %s, true", ("y",), ()),
        ("'x', %s, %s", ("y", "on"), ()),
        ("%s, %s, %s", (), (ANYTHING,)),
        ("%s, %s, false", None, (ANYTHING,)),
        ("%(a)s, 'y', false", [{"a": "x"}, {"a": "z"}], (ANYTHING,)),  # executemany
    ],
)
def test_parameters_of_a_call_are_known_when_it_is_sent(
    arguments: str, parameters: Any, expected: tuple[str, ...]
) -> None:
    assert keys(f"select set_config({arguments}) as one", "postgresql", parameters) == expected


def test_a_lock_is_known_by_its_parameters() -> None:
    lock, unlock = "select 1, %s, pg_advisory_lock(%s)", "select pg_advisory_unlock(%(key)s)"
    assert keys(lock, "postgresql", (7, 42)) == ("lock 42",)
    assert keys(unlock, "postgresql", {"key": 42}) == ("-lock 42",)


def test_a_lock_is_known_by_the_hash_of_its_parameters() -> None:
    lock = "select %s, pg_advisory_lock(%s, hashtext(%s))"
    unlock = "select pg_advisory_unlock(%(class)s, hashtext(%(key)s))"
    assert keys(lock, "postgresql", (7, 1, "a")) == ("lock 1, \"hashtext('a')\"",)
    assert keys(unlock, "postgresql", {"class": 1, "key": "a"}) == ("-lock 1, \"hashtext('a')\"",)
    assert keys(unlock, "postgresql", {"class": 1}) == ()


def test_only_a_statement_of_its_own_resets() -> None:
    assert [each.reset for each in changes("reset a;", None, "postgresql")] == [True]
    assert [each.reset for each in changes("select 1; reset a", None, "postgresql")] == [False]
    assert changes("insert into x values ('; reset a')", None, "postgresql") == ()


def test_a_list_of_parameters_gives_no_lock_back() -> None:
    """The driver executes it once for each."""
    lock, unlock = "select pg_advisory_lock(%s)", "select pg_advisory_unlock(%s)"
    assert keys(lock, "postgresql", [(1,), (2,)]) == ("lock ?",)
    assert keys(unlock, "postgresql", [(1,)]) == ()


def test_of_a_long_statement_only_the_beginning_is_read() -> None:
    data = ", ".join(["('a value')"] * 1000)
    assert not touches(f"insert into x values {data}, ('set a = 1')")
    assert touches(f"set a = 1; insert into x values {data}")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("SET_CONFIG('a', '1', false)", (ANYTHING,)),
        ("pg_advisory_lock(1)", ("lock ?",)),
        ("pg_advisory_unlock(1)", ()),
        ("get_lock('a', 1)", ("lock ?",)),
    ],
)
def test_in_a_long_statement_a_call_is_found_and_none_undoes_anything(call: str, expected: tuple[str, ...]) -> None:
    statement = f"select /* {'x' * 5000} */ {call}"
    assert keys(statement, "postgresql") == expected
    assert touches(statement) or not expected
