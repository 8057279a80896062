"""Two engines that do the same, one of them with `skip_idle_rollback`, each with one connection and its own database.

`compare` runs requests with both. After each it compares what others find (locks, rows), and what the next one meets on
that connection: its snapshot, its transaction, settings, savepoints, temporary tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Literal

import pymysql
from sqlalchemy import Connection, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from werkzeug.test import create_environ

from wsgi_dbguard import DBGuard, guard
from wsgi_dbguard.lab.mariadb import ADMIN, MariaDB
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.server import NAME

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# How a request has its connection; "left": in a Session that it does not close, so that `DBGuard` does.
Way = Literal["connection", "session", "left"]
WAYS: list[Way] = ["connection", "session", "left"]
TABLES = ("inno", "my", "aria")
PURGE = 20.0
SCHEMA = """
create table inno (a int primary key, b int) engine=InnoDB
create table my (a int) engine=MyISAM
create table aria (a int) engine=Aria transactional=0
create procedure both_results() begin select * from inno; select 2; end
create procedure writes() begin insert into inno values (50, 1); select 1; end
create procedure commits() begin insert into inno values (51, 1); commit; end
""".strip().splitlines()


class Twin:
    """One engine with its database, and somebody else who looks at it."""

    def __init__(self, server: MariaDB, driver: str, name: str, *, skips: bool) -> None:
        self.server, self.name = server, name
        self.url = make_url(server.url(driver)).set(database=name)
        self.skips = skips
        server.query(f"create database {name}")
        server.query(f"grant all on {name}.* to '{NAME}'@'localhost', '{NAME}'@'%'")
        self.other = pymysql.connect(unix_socket=str(server.socket), user=ADMIN, database=name, autocommit=True)
        self.ask("set session lock_wait_timeout = 0, innodb_lock_wait_timeout = 0")
        for each in SCHEMA:
            self.ask(each)

    def begin(self) -> None:
        """A new connection; everything is as at the beginning."""
        for table in (*TABLES, "made"):
            with suppress(pymysql.Error):
                self.ask(f"delete from {table}")
        self.ask("insert into inno values (1, 0), (2, 0)")
        self.ask("insert into my values (1)")
        self.ask("insert into aria values (1)")
        self.rows = 100
        self.sent = 0
        self.engine = create_engine(self.url, pool_size=1, max_overflow=0)
        guard(self.engine, skip_idle_rollback=self.skips)
        self.engine.raw_connection().close()

    def ask(self, statement: str) -> Any:
        with self.other.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def answer(self, statement: str) -> Any:
        try:
            return self.ask(statement)
        except pymysql.Error as error:
            return error.args[0]

    def rollbacks(self) -> int:
        return int(self.ask("show global status like 'Com_rollback'")[0][1])

    # A request, and what is seen after it

    def serve(self, steps: Sequence[str], way: Way) -> list[Any]:
        """What each step came to."""
        if way == "session":  # it would keep a connection that it cannot roll back
            steps = [each for each in steps if not each.startswith("xa begin")]
        owner = self.engine.connect() if way == "connection" else Session(self.engine)
        came: list[Any] = []
        before = self.rollbacks()

        def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
            came.extend(self._step(owner, each.format(name=self.name)) for each in steps)
            start_response("200 OK", [])
            return []

        if way == "left":
            list(DBGuard(app, self.engine, skip_idle_rollback=self.skips)(create_environ(), _start))
        else:
            app({}, _start)
            try:
                owner.close()
            except SQLAlchemyError as error:
                came.append(_number(error))
        self.sent += self.rollbacks() - before
        return came

    def _step(self, owner: Connection | Session, step: str) -> Any:
        kind, _, statement = step.rpartition(": ")
        try:
            if step in ("commit", "rollback"):
                getattr(owner, step)()
                return None
            connection = owner if isinstance(owner, Connection) else owner.connection()
            raw: Any = connection.connection.dbapi_connection
            if kind == "driver":
                return getattr(raw, statement)()
            if step == "ping":
                return bool(self.engine.dialect.do_ping(raw))
            if not kind and statement.startswith("call") and raw.__class__.__module__.startswith("mysql."):
                kind = "raw"  # of SQLAlchemy's two results one would stay unread, and be the answer to what comes next
            if not kind:
                result = connection.exec_driver_sql(statement)
                return [tuple(row) for row in result] if result.returns_rows else result.rowcount
            return _by_hand(raw, kind, statement)
        except (SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error) as error:
            return _number(error)

    def locked(self) -> list[Any]:
        """What others cannot have, or wait for."""
        tables = [self.answer(f"lock tables {table} write") for table in TABLES]
        self.ask("unlock tables")
        return [
            *tables,
            self.answer("select a from inno for update"),
            self.answer(f"select is_free_lock('{self.name}')"),
        ]

    def look(self) -> list[Any]:
        """What others see, then what the next request meets."""
        seen = [self.answer(f"select * from {table}") for table in (*TABLES, "made")]
        self.rows += 1
        self.answer(f"insert into inno values ({self.rows}, 0)")  # after any snapshot that was left
        proxied = self.engine.raw_connection()
        raw: Any = proxied.dbapi_connection
        meets = [self._meets(raw, each) for each in _FIRST]
        with suppress(pymysql.Error):
            self.ask("begin")
            self.ask(f"insert into inno values ({self.rows + 500}, 0)")
        meets.append(self._meets(raw, "select count(*) from inno"))  # READ UNCOMMITTED sees that row
        self.ask("commit")
        meets.append(self._meets(raw, "select count(*) from inno"))  # READ COMMITTED sees it now
        meets.append(self.answer("update inno set b = b where a = 2"))  # SERIALIZABLE has it locked
        meets += [self._meets(raw, each) for each in _THEN]
        proxied.close()
        return [*seen, *meets]

    def _meets(self, raw: Any, statement: str) -> Any:
        try:
            return _by_hand(raw, "raw", statement)
        except self.engine.dialect.loaded_dbapi.Error as error:
            return _number(error)

    def end(self) -> None:
        """Returns when the server has let go of what the connection had."""
        self.engine.dispose()
        self.server.terminate(*self.server.backends())  # mysql-connector does not close one that broke

    def close(self) -> None:
        self.ask(f"drop database {self.name}")
        self.other.close()


_FIRST = [
    "show warnings",
    "select row_count(), last_insert_id()",
    "select @@in_transaction, @@autocommit, @@tx_isolation, @@tx_read_only, @@completion_type, @@sql_mode, @v, @x",
    "select database()",
    "rollback to s",
    "set lock_wait_timeout = 0, innodb_lock_wait_timeout = 0",
    "select count(*) from inno",  # of this request's own snapshot
]
_THEN = [
    "select @@in_transaction",
    "insert into inno values (60, 0)",  # not in a transaction that is READ ONLY
    "select * from my",  # not where other tables are locked
    "select count(*) from tt",
    "execute p",
    "handler inno read first",
    "rollback",
    "select @@in_transaction",
]


def _start(*ignored: Any) -> Callable[[bytes], object]:
    return lambda data: None


def _by_hand(raw: Any, kind: str, statement: str) -> Any:
    """With a cursor of the driver's: all that it has, or one row."""
    package = type(raw).__module__.partition(".")[0]
    if kind == "binary":
        if package == "mariadb":
            cursor, values = raw.cursor(binary=True), (1,)
        elif package == "mysql":
            cursor, values = raw.cursor(prepared=True, buffered=False), (1,)
        else:
            cursor, values = raw.cursor(), None
            statement = statement.replace("?", "1")
    elif kind == "half":
        cursor, values = _unbuffered(raw, package), None
    else:
        cursor, values = raw.cursor(), None
    with closing(cursor):
        cursor.execute(statement, *([] if values is None else [values]))
        if kind == "half":
            return cursor.fetchone()
        found = []
        while True:
            found.append([tuple(row) for row in cursor.fetchall()] if cursor.description else None)
            if kind == "binary" or not cursor.nextset():
                return found


def _unbuffered(raw: Any, package: str) -> Any:
    if package == "pymysql":
        return raw.cursor(pymysql.cursors.SSCursor)
    if package == "MySQLdb":
        import MySQLdb.cursors

        return raw.cursor(MySQLdb.cursors.SSCursor)
    return raw.cursor(buffered=False)


def _number(error: Any) -> Any:
    error = getattr(error, "orig", None) or error
    number = getattr(error, "errno", None) or (error.args[0] if error.args else None)
    return number if isinstance(number, int) else type(error).__name__


Twins = tuple[Twin, Twin]


def compare(
    twins: Twins, requests: Sequence[Sequence[str]], way: Way = "connection", *, purge: float = PURGE
) -> list[str]:
    """What differs after these requests; nothing is the right answer.

    `purge`: seconds after which a lock that only one of them has is not the purge's.
    """
    for twin in twins:
        twin.begin()
    try:
        for steps in requests:
            if differs := _differs([twin.serve(steps, way) for twin in twins], twins):
                return [f"came to: {each}" for each in differs]
            try:  # InnoDB's purge has a lock on a table for a moment
                wait_until(lambda: not _differs([twin.locked() for twin in twins], twins), timeout=purge, what="")
            except TimeoutError:
                return [f"is locked: {each}" for each in _differs([twin.locked() for twin in twins], twins)]
            if differs := _differs([twin.look() for twin in twins], twins):
                return [f"is met: {each}" for each in differs]
        return []
    finally:
        for twin in twins:
            twin.engine.dispose()
        for twin in twins:
            twin.end()


def _differs(found: list[list[Any]], twins: Twins) -> list[str]:
    one, other = (
        [repr(each).replace(twin.name, "twin") for each in all] for all, twin in zip(found, twins, strict=True)
    )
    return [f"{a} / {b}" for a, b in zip(one, other, strict=True) if a != b]
