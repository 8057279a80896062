"""Where claims are marked: around the dialect's own methods for COMMIT and for transactions in two phases.

Not by SQLAlchemy's connection events, for the reason that `wsgi_dbguard.transactions` gives; and around COMMIT a mark
that fails can be undone for certain. SQLAlchemy takes a transaction whose COMMIT has failed for ended: it sends no
ROLLBACK for it, nor, where the Connection is closed next, when that goes back to the pool. MariaDB and MySQL keep such
a transaction after most errors, and whoever commits next on that connection would commit it too, without the mark.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from wsgi_dbguard import failures, transactions

from .claims import Claim, ClaimLost, active
from .marker import ClaimUnseen

__all__ = ["watch"]

_KEY = "wsgi_dbguard.claim"  # in a pool entry's info, while the request has the connection
_watched: weakref.WeakSet[Dialect] = weakref.WeakSet()  # of an engine and its execution_options() copies


def watch(engine: Engine) -> None:
    """Mark claims at the commits of `engine`. At the second call, nothing."""
    dialect = engine.dialect
    if dialect in _watched:
        return
    _watched.add(dialect)
    # Before ours are put around: a COMMIT that the mark prevents is none to it.
    transactions.watch(engine)
    _around(dialect)
    _around_two_phases(dialect)
    event.listen(engine, "handle_error", _on_error)
    event.listen(engine, "checkout", _on_checkout)
    event.listen(engine, "checkin", _on_checkin)


def _claim(dialect: Dialect) -> Claim | None:
    claim = active.get()
    return claim if claim is not None and claim.is_for(dialect) else None


def _around(dialect: Dialect) -> None:
    do_commit, do_rollback = dialect.do_commit, dialect.do_rollback

    @functools.wraps(do_commit)
    def commit(connection: PoolProxiedConnection) -> None:
        claim = _claim(dialect)
        if claim is None:
            do_commit(connection)
            return
        try:
            claim.committing(connection)
        except BaseException as error:
            _undo(do_rollback, connection, error)
            raise
        do_commit(connection)  # if that fails, `_on_error` hears of it, unless somebody around this knows better
        claim.committed()

    dialect.do_commit = commit  # type: ignore[method-assign, assignment]


def _undo(do_rollback: Callable[[Any], object], connection: PoolProxiedConnection, error: BaseException) -> None:
    """Roll back what cannot be committed because of `error`, by a ROLLBACK or by the end of the connection."""
    if isinstance(error, ClaimLost | ClaimUnseen) or failures.refused(error):  # the server has answered: it listens
        with suppress(Exception):
            do_rollback(connection)
            return
    if connection.is_valid:
        connection.invalidate(error)


def _around_two_phases(dialect: Dialect) -> None:
    """Marked before PREPARE, or before the COMMIT of what was never prepared.

    A mark that fails ends the connection, and so the transaction: drivers differ in what else they would accept.
    """
    do_prepare, do_commit, do_rollback = (
        dialect.do_prepare_twophase,
        dialect.do_commit_twophase,
        dialect.do_rollback_twophase,
    )

    def mark(claim: Claim, connection: Connection) -> None:
        try:
            claim.committing(connection.connection)
        except BaseException as error:
            if not connection.invalidated:
                connection.invalidate(error)
            raise

    @functools.wraps(do_prepare)
    def prepare(connection: Connection, xid: Any) -> None:
        claim = _claim(dialect)
        if claim is None:
            do_prepare(connection, xid)
            return
        mark(claim, connection)
        try:
            do_prepare(connection, xid)
        except BaseException as error:
            claim.settle(refused=_refused(error))
            raise
        claim.prepared(xid)

    @functools.wraps(do_commit)
    def commit(connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False) -> None:
        claim = _claim(dialect)
        if claim is None:
            do_commit(connection, xid, is_prepared, recover)
            return
        alone = not is_prepared and dialect.name == "postgresql"  # MySQL's dialects prepare it first, in any case
        if alone:
            mark(claim, connection)
        try:
            do_commit(connection, xid, is_prepared, recover)
        except BaseException as error:
            if alone:
                claim.settle(refused=_refused(error))
            claim.in_doubt |= claim.has_mark(xid)
            raise
        claim.committed()

    @functools.wraps(do_rollback)
    def rollback(connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False) -> None:
        claim = _claim(dialect)
        try:
            do_rollback(connection, xid, is_prepared, recover)
        except BaseException:
            if claim is not None:
                claim.in_doubt |= claim.has_mark(xid)
            raise
        if claim is not None:
            claim.withdrawn(xid)

    dialect.do_prepare_twophase = prepare  # type: ignore[method-assign]
    dialect.do_commit_twophase = commit  # type: ignore[method-assign]
    dialect.do_rollback_twophase = rollback  # type: ignore[method-assign]


def _refused(error: BaseException) -> bool:
    """`failures.refused`, also of what SQLAlchemy made of a driver's error: some dialects send statements for it."""
    return failures.refused(getattr(error, "orig", None) or error)


def _on_error(context: ExceptionContext) -> None:
    claim = active.get()
    if claim is not None:
        claim.failed(context)


def _on_checkout(connection: Any, entry: ConnectionPoolEntry, *ignored: Any) -> None:
    claim = active.get()
    if claim is not None:
        claim.held += 1
        entry.info[_KEY] = claim


def _on_checkin(connection: Any, entry: ConnectionPoolEntry) -> None:
    claim = entry.info.pop(_KEY, None)
    if claim is not None:
        claim.held -= 1
