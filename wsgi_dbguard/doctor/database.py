"""What the server behind an engine says of itself: limits, timeouts, its part in a replication, what is in between.

Asked over connections of a pool of its own (`Pool.recreate`), so the application's pool is left as it was, and with
everything that the application tells the driver: `connect_args`, `creator`, its listeners. Reads only, in autocommit or
rolled back. Part of the process that imported the application.

Example::

    facts = DatabaseFacts(engine=0)
    ask(engine, facts)
    facts.max_connections
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine

from wsgi_dbguard import sockets
from wsgi_dbguard.watchdog import Deadline

from .facts import DatabaseFacts

__all__ = ["ask"]

_WAIT = 1.0  # seconds for a second server behind a pooler: where there is one only, its other clients wait as well
_ROUNDS = 3  # looks at which server a pooler gives: the last one used comes first, so one would do (PgBouncer: LIFO)


class Client:
    """One connection of the engine's kind, and what it is asked."""

    def __init__(self, dbapi: Any) -> None:
        self.dbapi = dbapi

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """All rows. Raises the driver's errors."""
        cursor = self.dbapi.cursor()
        try:
            cursor.execute(statement)
            return [tuple(row) for row in cursor.fetchall()]
        finally:
            cursor.close()

    def named(self, statement: str) -> dict[str, str]:
        """Rows of name and value."""
        return {str(name).lower(): str(value) for name, value in self.rows(statement)}

    def one(self, statement: str) -> Any:
        """The first column of the first row."""
        return self.rows(statement)[0][0]


def ask(engine: Engine, facts: DatabaseFacts) -> None:
    """Fill in what the server says, step by step: what was told stays when a later step hangs.

    Raises what the driver raises: it is for the caller to hide passwords in that.
    """
    with _connected(engine) as client:
        with contextlib.suppress(NotImplementedError):  # not every dialect can tell
            facts.autocommit = bool(engine.dialect.detect_autocommit_setting(client.dbapi))
        facts.remote, facts.tls = _way(client.dbapi)
        if engine.dialect.name == "postgresql":
            _postgresql(client, facts)
            if _is_pooled(client, engine.dialect.driver):
                _pooler(engine, client, facts)
        else:
            _mysql(client, facts)


@contextlib.contextmanager
def _connected(engine: Engine) -> Iterator[Client]:
    pool = engine.pool.recreate()
    try:
        connection = pool.connect()
        try:
            yield Client(connection.dbapi_connection)
        finally:
            connection.invalidate()
    finally:
        pool.dispose()


def _way(dbapi: Any) -> tuple[bool | None, bool | None]:
    """Whether the other end is another host, and whether it is reached by TLS; None where the driver does not tell."""
    fd = sockets.fileno(dbapi)
    if fd is None:
        return None, None
    local, peer = sockets.ends(fd)
    if not isinstance(peer, tuple):  # a Unix socket
        return False, None
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    remote = not address.is_loopback and peer[0] != (local or ("",))[0]
    return remote, _encrypted(dbapi)


def _encrypted(dbapi: Any) -> bool | None:
    info: Any = getattr(dbapi, "info", None)  # psycopg2
    if hasattr(info, "ssl_in_use"):
        return bool(info.ssl_in_use)
    pgconn = getattr(dbapi, "pgconn", None)  # psycopg
    if pgconn is not None:
        return bool(pgconn.ssl_in_use)
    for name in ("_sock", "_usock"):  # PyMySQL, pg8000
        if hasattr(dbapi, name):
            return isinstance(getattr(dbapi, name), ssl.SSLSocket)
    return None


_SETTINGS = """
select name, setting from pg_settings where name in ('server_version', 'max_connections', 'reserved_connections',
'superuser_reserved_connections', 'idle_session_timeout', 'idle_in_transaction_session_timeout')
"""


def _postgresql(client: Client, facts: DatabaseFacts) -> None:
    told = client.named(_SETTINGS)
    facts.version = f"PostgreSQL {told.get('server_version', '')}".strip()
    facts.max_connections = int(told["max_connections"]) if "max_connections" in told else None
    facts.reserved = int(told.get("superuser_reserved_connections", 0)) + int(told.get("reserved_connections", 0))
    idle = int(told.get("idle_session_timeout", 0)) / 1000  # told in milliseconds
    if idle:
        facts.idle_limit, facts.idle_limit_name = idle, "idle_session_timeout"
    facts.transaction_limit = int(told.get("idle_in_transaction_session_timeout", 0)) / 1000 or None
    facts.standby = bool(client.one("select pg_is_in_recovery()"))
    facts.prepares = getattr(client.dbapi, "prepare_threshold", None) is not None  # psycopg, 5 by default


def _mysql(client: Client, facts: DatabaseFacts) -> None:
    told = client.named(
        "show variables where variable_name in ('version', 'max_connections', 'wait_timeout', 'interactive_timeout',"
        " 'read_only', 'idle_transaction_timeout', 'extra_max_connections')"
    )
    name = "MariaDB" if "mariadb" in told.get("version", "").lower() else "MySQL"
    facts.version = f"{name} {told.get('version', '').partition('-')[0]}"
    facts.max_connections = int(told["max_connections"])  # one more is for administrators
    # The session's: interactive_timeout has taken its place where the client said that it is a person.
    facts.idle_limit, facts.idle_limit_name = float(told["wait_timeout"]), "wait_timeout"
    everybody = int(client.one("select @@global.wait_timeout"))
    if float(told["wait_timeout"]) != everybody and told["wait_timeout"] == told.get("interactive_timeout"):
        facts.idle_limit_name = "interactive_timeout"
    facts.transaction_limit = float(told.get("idle_transaction_timeout", 0)) or None
    facts.standby = told.get("read_only", "").upper() not in ("", "0", "OFF")
    if facts.tls is None:
        facts.tls = client.named("show session status like 'Ssl_cipher'").get("ssl_cipher", "") != ""


def _is_pooled(client: Client, driver: str) -> bool:
    """Whether the server that answers is another one than the driver was told of when it logged in."""
    info = getattr(client.dbapi, "info", None)
    told = getattr(info, "backend_pid", None)
    if key := getattr(client.dbapi, "_backend_key_data", None):  # pg8000: the process, and a secret
        told = int.from_bytes(key[:4], "big")
    return told is not None and int(told) != int(client.one("select pg_backend_pid()"))


def _pooler(engine: Engine, client: Client, facts: DatabaseFacts) -> None:
    """In transaction mode a server that was used is free for the next client, while its last client is still there.

    Where the pooler has no second server to give, one of our two clients waits for the other, and so does everybody
    else: for `_WAIT` seconds, then both are cut off. What was seen by then stands.
    """
    facts.pooler = "session"
    client.dbapi.rollback()
    fds = [_descriptor(client)]

    def cut() -> None:
        for each in fds:
            sockets.cut(each)

    deadline = Deadline(_WAIT, cut)
    try:
        with deadline, _connected(engine) as other:
            fds.append(_descriptor(other))
            _look_behind(engine, client, other, facts)
    except Exception:
        if not deadline.expired:
            raise
    finally:
        for each in fds:
            os.close(each)


def _descriptor(client: Client) -> int:
    """One of our own for its socket: the driver's may be closed, and be somebody else's, when it is used."""
    fd = sockets.fileno(client.dbapi)
    assert fd is not None  # a driver that tells its backend's number tells this as well
    return os.dup(fd)


def _look_behind(engine: Engine, client: Client, other: Client, facts: DatabaseFacts) -> None:
    """Which server each of two clients gets, in turn.

    The statement is sent as one that is prepared, where the driver does that by itself: on another server there is none
    of that name, unless the pooler looks after it (PgBouncer 1.21 and later, with max_prepared_statements). Committed,
    as an application does: psycopg drops its prepared statements at a rollback.
    """
    who = "select pg_backend_pid()"
    for _ in range(_ROUNDS):
        mine = _prepared(client, who) if facts.prepares else client.one(who)
        client.dbapi.commit()
        others = other.one(who)
        if others == mine:
            facts.pooler = "transaction"
            if not facts.prepares:
                return
        try:  # while the other one is in its transaction
            again = _prepared(client, who) if facts.prepares else client.one(who)
        except engine.dialect.loaded_dbapi.Error:
            if not facts.prepares or client.dbapi.closed:  # cut off, not refused
                raise
            facts.pooler, facts.prepared_fails = "transaction", True
            return
        client.dbapi.commit()
        other.dbapi.commit()
        if again != mine:
            facts.pooler = "transaction"


def _prepared(client: Client, statement: str) -> Any:
    """`Client.one`, by psycopg's prepared statements."""
    return client.dbapi.execute(statement, prepare=True).fetchone()[0]
