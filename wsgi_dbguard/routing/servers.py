"""What primary and replicas are asked: how far are you? One statement, in autocommit, with a deadline.

Autocommit, so that it is one round trip and no snapshot begins; with a deadline, since a server that hangs is to cost a
request no more than that. Nothing of it counts as the request's own.

* PostgreSQL's primary: the insert position. With ``synchronous_commit = off`` the positions of write and flush are
  behind the commit that was answered. A replica that was promoted tells a replay position that never moves again, so
  it is asked whether it is one. A standby's timeline is told by its receiver, but only to members of
  ``pg_read_all_stats``; otherwise by its control file, where a new one stands after the next restartpoint at the latest
  (``checkpoint_timeout``). Neither is ahead of what it replays.
* MariaDB: ``gtid_binlog_pos`` of the primary, ``gtid_slave_pos`` of the replica, with ``gtid_binlog_state`` for what
  former primaries wrote. Never MASTER_GTID_WAIT: on a server that replicates nothing it waits for ever.
* MySQL: ``gtid_executed`` of both.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.pool import QueuePool

from wsgi_dbguard.link import KEY, Link
from wsgi_dbguard.request import Request, current
from wsgi_dbguard.watchdog import Deadline

from .positions import Lsn, MariaDBGtids, MySQLGtids, Position

__all__ = ["NotReplicating", "PoolExhausted", "applied", "applied_by", "has_room", "kind_of", "written"]

_KINDS: dict[str, type[Position]] = {"postgresql": Lsn, "mariadb": MariaDBGtids, "mysql": MySQLGtids}
_WRITTEN = {
    # A log file's name begins with its timeline.
    Lsn: "SELECT pg_current_wal_insert_lsn() || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),"
    " current_setting('wal_block_size'), pg_size_bytes(current_setting('wal_segment_size'))",
    MariaDBGtids: "SELECT @@global.gtid_binlog_pos",
    MySQLGtids: "SELECT @@global.gtid_executed",
}
_APPLIED = {
    Lsn: "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() || '/' || upper(to_hex(coalesce("
    "(SELECT received_tli FROM pg_stat_wal_receiver), (SELECT greatest(timeline_id, min_recovery_end_timeline)"
    " FROM pg_control_checkpoint(), pg_control_recovery())))) END",
    MariaDBGtids: "SELECT @@global.gtid_slave_pos, @@global.gtid_binlog_state",
    MySQLGtids: "SELECT @@global.gtid_executed",
}


class NotReplicating(RuntimeError):
    """The server tells no position: it was promoted, or replication, or the binary log, was never set up."""


class PoolExhausted(RuntimeError):
    """There is no connection to ask with, and to wait for one could mean to wait for each other."""


def kind_of(engine: Engine) -> type[Position]:
    """What the positions of this engine's server are. Raises ValueError for a database without any."""
    name = "mariadb" if getattr(engine.dialect, "is_mariadb", False) else engine.dialect.name
    try:
        return _KINDS[name]
    except KeyError:
        raise ValueError(f"routing knows PostgreSQL, MariaDB and MySQL, not {name}") from None


def written(engine: Engine, timeout: float) -> Position:
    """How far the primary is: all that was committed before the call is covered.

    Raises:
        NotReplicating, PoolExhausted: see there; sqlalchemy.exc.SQLAlchemyError: when it could not be asked.
    """
    kind, row = _ask(engine, _WRITTEN, timeout)
    if kind is Lsn:
        return Lsn.inserted(row[0], int(row[1]), int(row[2]))
    return _position(kind, row[0])


def applied(engine: Engine, timeout: float) -> Position:
    """How far a replica is: what it has applied, so that a snapshot taken from now on shows it. Raises as `written`."""
    kind, row = _ask(engine, _APPLIED, timeout)
    return _replayed(kind, row)


def applied_by(engine: Engine, connection: Any) -> Position:
    """`applied`, asked on a DBAPI connection that nobody uses yet. Raises the driver's errors, NotReplicating."""
    kind = kind_of(engine)
    cursor = connection.cursor()
    try:
        cursor.execute(_APPLIED[kind])
        row = cursor.fetchone()
    finally:
        cursor.close()
    connection.rollback()
    return _replayed(kind, row)


def _replayed(kind: type[Position], row: Any) -> Position:
    if kind is MariaDBGtids and row[0]:
        return MariaDBGtids.applied(*row)
    return _position(kind, row[0])


def _position(kind: type[Position], text: str | None) -> Position:
    if not text:
        raise NotReplicating("it tells no position")
    return kind.parse(text)


def has_room(engine: Engine) -> bool:
    """Whether the pool has a connection to give, now. Another thread may be faster; then one waits for that one."""
    pool = engine.pool
    if not isinstance(pool, QueuePool) or pool.checkedin() > 0:
        return True
    most = getattr(pool, "_max_overflow", -1)  # a private name; without it the pool is taken for one without a bound
    return most < 0 or pool.overflow() < most


def _ask(engine: Engine, statements: dict[Any, str], timeout: float) -> tuple[type[Position], Any]:
    if not has_room(engine):
        raise PoolExhausted
    own = Request({"PATH_INFO": __name__})  # what a report of the pool's users calls it
    own.held = float("inf")  # it has no patience: where the breaker knows that the server is away it is told at once
    outside = current.set(own)
    try:
        with engine.connect() as connection:
            # Only now: until it has connected, the dialect does not know MariaDB from MySQL.
            kind = kind_of(engine)
            with _deadline(connection, timeout):
                return kind, connection.exec_driver_sql(statements[kind]).one()
    finally:
        current.reset(outside)
        own.end()


def _deadline(connection: Connection, timeout: float) -> Deadline | nullcontext[None]:
    link: Link | None = connection.connection.info.get(KEY)
    return nullcontext() if link is None else Deadline(timeout, link.cut)
