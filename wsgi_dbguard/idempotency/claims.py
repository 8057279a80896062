"""The claim of the running request: marked in the application's own transactions, from SQLAlchemy's public events.

The mark is set at the first COMMIT of a transaction that may have written anything, on the same connection, just before
it is sent. With a transaction that fails the mark is gone as well, and the next one sets it again.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from wsgi_dbguard import failures
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.transactions import only_reads

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Claim", "ClaimLost", "active", "watch"]

_KEY = "wsgi_dbguard.claim"  # in a pool entry's info, while the request has the connection
_AWAY = frozenset({Failure.DISCONNECT, Failure.UNAVAILABLE, Failure.READ_ONLY, Failure.IN_DOUBT})
_watched: weakref.WeakSet[Engine] = weakref.WeakSet()


class ClaimLost(OperationalError):
    """The request took longer than its lease and another one has its key: its transaction was rolled back."""


class Claim:
    """What one attempt at a keyed request has done with the database."""

    __slots__ = (
        "__weakref__",
        "_marking",
        "_pending",
        "_store",
        "_wrote",
        "commits",
        "database_failed",
        "held",
        "id",
        "in_doubt",
        "lost",
        "marked",
        "owner",
    )

    def __init__(self, store: Store, id: str, owner: str) -> None:
        self._store = store
        self.id = id
        self.owner = owner
        self.marked = False  # as far as is known, what was applied is committed
        self.in_doubt = False  # a connection was lost during a COMMIT
        self.lost = False  # another owner has the key
        self.database_failed = False  # it was lost, or did not take writes
        self.commits = 0  # finished or in doubt
        self.held = 0  # connections that the request has at the moment
        # The last one that was told to commit, until it begins another transaction; and whether that one set the mark.
        self._pending: weakref.ref[Connection] | None = None
        self._marking = False
        self._wrote: weakref.WeakKeyDictionary[Connection, bool] = weakref.WeakKeyDictionary()

    def committing(self, connection: Connection) -> None:
        """`connection` is about to commit.

        Raises:
            ClaimLost: if the key is somebody else's by now. The transaction is rolled back then.
            sqlalchemy.exc.DBAPIError: if the mark cannot be set.
        """
        again = self._is_pending(connection)  # it was not sent the last time: a listener of somebody else's failed
        if not self.marked or (again and self._marking):
            marked = self._store.mark(connection, self.id, self.owner) if self._may_have_written(connection) else None
            if marked is False:
                self.lost = True
                connection.dialect.do_rollback(connection.connection)
                raise ClaimLost(None, None, RuntimeError("the Idempotency-Key was given to another request"))
            self.marked = self._marking = marked is True
        else:
            self._marking = False
        self._pending = weakref.ref(connection)
        self.commits += not again

    def _may_have_written(self, connection: Connection) -> bool:
        options = connection.get_execution_options()
        # One that was seen to do nothing but read has not; of one that was not seen to do anything nothing is known.
        return not options.get("postgresql_readonly") and self._wrote.get(connection, True)

    def _is_pending(self, connection: Connection) -> bool:
        return self._pending is not None and self._pending() is connection

    def begun(self, connection: Connection) -> None:
        """A transaction begins on `connection`: so its last COMMIT was carried out."""
        self._wrote.pop(connection, None)
        if self._is_pending(connection):
            self._pending = None

    def executes(self, connection: Connection, statement: str) -> None:
        """`statement` is sent on `connection`."""
        self._wrote[connection] = self._wrote.get(connection, False) or not only_reads(statement)

    def rolled_back(self, connection: Connection) -> None:
        """`connection` rolls back: so a COMMIT that was about to be sent was not."""
        if self._is_pending(connection):
            self._undo()

    def failed(self, context: ExceptionContext) -> None:
        """An operation on a connection, or getting one, failed."""
        error, connection = context.original_exception, context.connection
        failure = failures.classify(error, connecting=connection is None)
        self.database_failed |= context.is_disconnect or failure in _AWAY
        if connection is None or context.statement is not None or not self._is_pending(connection):
            return
        if failures.refused(error) and not context.is_disconnect:
            self._undo()
        else:
            self.in_doubt = True
            self._pending = None

    def _undo(self) -> None:
        self._pending = None
        self.commits -= 1
        if self._marking:
            self.marked = self._marking = False

    def is_of(self, connection: Connection) -> bool:
        """Whether `connection` is to the database in which the claim is."""
        return connection.dialect is self._store.engine.dialect


active: ContextVar[Claim | None] = ContextVar("wsgi_dbguard.claim", default=None)


def watch(engine: Engine) -> None:
    """Mark claims at the commits of `engine`. At the second call, nothing."""
    if engine in _watched:
        return
    _watched.add(engine)
    # The guard counts a COMMIT when it is sent, which is after all these: one that the mark prevents is none.
    event.listen(engine, "commit", _on_commit)
    event.listen(engine, "commit_twophase", _on_commit_twophase)
    event.listen(engine, "prepare_twophase", _on_prepare)
    event.listen(engine, "rollback", _on_rollback)
    event.listen(engine, "begin", _on_begin)
    event.listen(engine, "handle_error", _on_error)
    event.listen(engine, "checkout", _on_checkout)
    event.listen(engine, "checkin", _on_checkin)
    if engine.dialect.name != "postgresql":  # which tells by itself what has written
        event.listen(engine, "before_cursor_execute", _on_statement)


def _claim(connection: Connection) -> Claim | None:
    claim = active.get()
    return claim if claim is not None and claim.is_of(connection) else None


def _on_commit(connection: Connection) -> None:
    if claim := _claim(connection):
        claim.committing(connection)


def _on_prepare(connection: Connection, *ignored: Any) -> None:
    _on_commit(connection)  # from here on, others may commit it


def _on_commit_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    if not is_prepared:
        _on_commit(connection)


def _on_rollback(connection: Connection) -> None:
    if claim := _claim(connection):
        claim.rolled_back(connection)


def _on_begin(connection: Connection) -> None:
    if claim := _claim(connection):
        claim.begun(connection)


def _on_statement(connection: Connection, cursor: Any, statement: str, *ignored: Any) -> None:
    if claim := _claim(connection):
        claim.executes(connection, statement)


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
