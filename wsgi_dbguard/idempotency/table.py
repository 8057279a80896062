"""The table of the keys, in PostgreSQL, MariaDB and MySQL: how it is made, and purged.

Times are seconds since 1970 by the database's own clock: no host's clock and no time zone has a say.
"""

from __future__ import annotations

import math
from functools import lru_cache

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Double,
    Engine,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    false,
    literal_column,
    select,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

__all__ = ["TABLE", "clock", "create_table", "ddl", "make_table", "purge"]

TABLE = "idempotency_keys"
_NOW = {
    "postgresql": "extract(epoch from clock_timestamp())",
    "mysql": "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1000000)",
}
_NOW["mariadb"] = _NOW["mysql"]


def clock(dialect: str) -> ColumnElement[float]:
    """The present time of a database whose SQLAlchemy dialect has the name `dialect`, in seconds since 1970.

    Raises:
        ValueError: for a database that is not supported.
    """
    if dialect not in _NOW:
        raise ValueError(f"idempotency keys are for PostgreSQL, MariaDB and MySQL, not for {dialect}")
    return literal_column(_NOW[dialect], Double)


@lru_cache
def make_table(name: str) -> Table:
    """The table's description; `name` may have a schema before a dot."""
    schema, _, plain = name.rpartition(".")
    # MySQL's BLOB ends one byte short of 64 KiB.
    binary = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
    return Table(
        plain,
        MetaData(),
        Column("id", String(64), primary_key=True),  # sha256 of principal and key
        Column("owner", String(32), nullable=False),  # the attempt that may commit
        Column("fingerprint", String(64), nullable=False),  # sha256 of the request
        Column("applied", Boolean, nullable=False, server_default=false()),
        Column("created", Double, nullable=False),
        Column("expires", Double, nullable=False),  # the lease; 0 when the request is over, 1 if it did not end well
        Column("head", binary),  # status and headers, JSON
        Column("body", binary),
        Index(f"{plain}_created", "created"),
        schema=schema or None,
        mysql_engine="InnoDB",
        mysql_charset="ascii",
        mysql_collate="ascii_bin",
        mariadb_engine="InnoDB",
        mariadb_charset="ascii",
        mariadb_collate="ascii_bin",
    )


def ddl(dialect: str, table: str = TABLE) -> str:
    """The statements that make `table`, for a migration; `dialect` is the name of SQLAlchemy's.

    Raises:
        ValueError: for a database that is not supported.
    """
    clock(dialect)
    made = make_table(table)
    form = postgresql.dialect() if dialect == "postgresql" else mysql.dialect()  # type: ignore[no-untyped-call]
    statements: list[CreateTable | CreateIndex] = [CreateTable(made), *map(CreateIndex, made.indexes)]
    return "\n\n".join(f"{str(each.compile(dialect=form)).strip()};" for each in statements)


def create_table(engine: Engine, table: str = TABLE) -> None:
    """Make `table`, unless it is there. Workers that start at once may all call it.

    Raises:
        ValueError: for a database that is not supported.
        sqlalchemy.exc.DBAPIError: if the database refuses.
    """
    clock(engine.dialect.name)
    made = make_table(table)
    try:
        made.create(engine, checkfirst=True)
    except DBAPIError:  # PostgreSQL's own IF NOT EXISTS fails as well if another one makes it meanwhile
        made.create(engine, checkfirst=True)


def purge(engine: Engine, *, older_than: float, batch: int = 1000, table: str = TABLE) -> int:
    """Delete the keys that were first used more than `older_than` seconds ago, but for those in use; returns how many.

    In transactions of `batch` rows each, so that nobody waits for long. A key that was deleted is as good as new: let
    `older_than` be longer than clients go on repeating a request.

    Raises:
        ValueError: for an `older_than` below zero, or a `batch` below one.
        sqlalchemy.exc.DBAPIError: if the database fails.
    """
    if not 0 <= older_than < math.inf or batch < 1:
        raise ValueError("older_than must be 0 seconds or more, batch 1 row or more")
    keys, now = make_table(table), clock(engine.dialect.name)
    # Each statement is a transaction: with the engine's own level two that purge at once would be each other's failure.
    engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    past = (keys.c.created <= now - older_than) & (keys.c.expires <= now)
    deleted = 0
    while True:
        with engine.connect() as connection:
            ids = connection.scalars(select(keys.c.id).where(past).limit(batch)).all()
            if ids:
                # Asked again: one may have been taken over in the meantime.
                deleted += connection.execute(delete(keys).where(keys.c.id.in_(ids), past)).rowcount
        if len(ids) < batch:
            return deleted
