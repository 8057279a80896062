"""What a request leaves on a pooled connection by SQL: noted while it runs, see `variables` for what is done about it.

In PostgreSQL a rollback undoes a SET, so what was changed in a transaction counts when that is committed: a request
that only reads costs nothing. What was put right before a rollback to a savepoint, or in a transaction that has failed,
does not count. A lock counts as given back if it was taken once: one that was tried for in vain and then taken costs
the connection. Only statements that SQLAlchemy sends in a request are seen, not those of ``raw_connection()``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.pool import PoolProxiedConnection

from .link import KEY, Link
from .request import Request
from .statements import ANYTHING

__all__ = ["committed", "has_ended", "has_failed", "keeps_a_lock", "note", "rolled_back"]

_MISSING = object()
_FAILED = (3, b"E")  # libpq's PQTRANS_INERROR, and the byte of the protocol that pg8000 keeps
_IDLE = (0, b"I")  # PQTRANS_IDLE


def keeps_a_lock(link: Link) -> bool:
    """Whether it holds others up, also while it lies in the pool."""
    return any(each.startswith(("lock ", "tables ")) for each in link.changed or ())


def note(connection: Connection, statement: str, parameters: Any, request: Request) -> None:
    """`statement`, for which `statements.touches`, is about to be sent."""
    link = _link(connection.connection)
    if link is None or link.guard is None:
        return
    try:  # here: most applications send no such statement
        from .changes import COMMIT, ROLLBACK, Change, changes
    except (ImportError, OSError):  # such as out of descriptors; to be closed then
        _apply(link, ANYTHING, changed=True)
        return
    transaction: bool | None = None
    for each in changes(statement, parameters, connection.dialect.name):
        if each.key == COMMIT:
            committed(connection.connection)
            continue
        if each.key == ROLLBACK:
            link.pending = dict.fromkeys(link.pending, True)  # what was put right may be back
            continue
        change = each
        if change.reset and change.key != ANYTHING and link.values.get(change.key, _MISSING) is None:
            change = Change(change.key, undo=True, transactional=True)
        if change.undo and has_failed(connection.connection):
            continue
        if change.transactional and transaction is None:
            transaction = _in_transaction(connection)
        if change.transactional and transaction:
            request.changes = True
            link.pending.pop(change.key, None)  # the order counts
            link.pending[change.key] = not change.undo
        else:
            _apply(link, change.key, not change.undo)


def committed(proxied: PoolProxiedConnection) -> None:
    """What was changed in its transaction stays."""
    link = _link(proxied)
    if link is not None:
        pending, link.pending = link.pending, {}
        if has_failed(proxied):  # then a COMMIT rolls back
            return
        for key, changed in pending.items():
            _apply(link, key, changed)


def rolled_back(proxied: PoolProxiedConnection) -> None:
    """What was changed in its transaction is as it was."""
    link = _link(proxied)
    if link is not None:
        link.pending.clear()


def _link(proxied: PoolProxiedConnection) -> Link | None:
    link: Link | None = proxied.info.get(KEY) if proxied.is_valid else None
    return link


def has_failed(proxied: PoolProxiedConnection) -> bool:
    """Whether its transaction takes nothing but a rollback, as far as its driver (of PostgreSQL) tells."""
    return _status(proxied.dbapi_connection) in _FAILED


def has_ended(proxied: PoolProxiedConnection) -> bool:
    """Whether it is in no transaction, as far as its driver (of PostgreSQL) tells.

    MySQL's drivers tell as much of one in which the only statement has failed.
    """
    return _status(proxied.dbapi_connection) in _IDLE


def _status(driver: Any) -> Any:
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    return getattr(driver, "_transaction_status", None) if status is None else status


def _in_transaction(connection: Connection) -> bool:
    dbapi_connection = connection.connection.dbapi_connection
    try:
        return dbapi_connection is not None and not connection.dialect.detect_autocommit_setting(dbapi_connection)
    except NotImplementedError:
        return False


def _apply(link: Link, key: str, changed: bool) -> None:
    left = set(link.changed or ())
    if changed:
        left.add(f"{key} again" if key in left and key.startswith("lock ") else key)
    else:
        kind = key[:-1] if key.endswith(" *") else None
        for each in (*left, *link.pending):
            if each == key or (kind is not None and each.startswith(kind)):
                left.discard(each)
                link.pending.pop(each, None)
    link.changed = left or None
