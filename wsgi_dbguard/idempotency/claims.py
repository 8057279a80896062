"""The claim of the running request: marked in the application's own transactions, and what becomes of the mark.

The mark is set at the first COMMIT of a transaction that may have written anything, on the same connection, just before
it is sent. With a transaction that fails the mark is gone as well, and the next one sets it again. So does the next one
after a COMMIT whose reply was lost, if an application tries again by itself: it finds out what became of that one.

PostgreSQL tells what has written anything. MariaDB and MySQL do not, and from here it is not to be known: a function
that a SELECT calls may write, and the statements of a driver's own cursor are not seen. There each COMMIT is marked.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import PoolProxiedConnection

from wsgi_dbguard import failures
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.request import current

from .marker import ClaimUnseen

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Claim", "ClaimLost", "active"]

_AWAY = frozenset({Failure.DISCONNECT, Failure.UNAVAILABLE, Failure.READ_ONLY, Failure.IN_DOUBT})


class ClaimLost(OperationalError):
    """The transaction was rolled back: its request took longer than its lease and another one has its key.

    Or the request has committed before, and was not told so: the reply was lost.
    """


class Claim:
    """What one attempt at a keyed request has done with the database."""

    __slots__ = (
        "__weakref__",
        "_marking",
        "_pending",
        "_prepared",
        "_store",
        "commits",
        "database_failed",
        "held",
        "id",
        "in_doubt",
        "lost",
        "marked",
        "owner",
        "unseen",
    )

    def __init__(self, store: Store, id: str, owner: str) -> None:
        self._store = store
        self.id = id
        self.owner = owner
        self.marked = False  # as far as is known, what was applied is committed
        self.in_doubt = False  # a connection was lost during a COMMIT
        self.lost = False  # another owner has the key
        self.unseen = False  # a snapshot does not show it: perhaps it is lost
        self.database_failed = False  # it was lost, or did not take writes
        self.commits = 0  # finished or in doubt
        self.held = 0  # connections that the request has at the moment
        # The one that is being told to commit; and whether the mark is part of what it commits.
        self._pending: weakref.ref[PoolProxiedConnection] | None = None
        self._marking = False
        self._prepared: Any = None  # the id of a transaction in two phases that has the mark

    def is_for(self, dialect: Dialect) -> bool:
        """Whether the claim is in the database of this engine."""
        return dialect is self._store.engine.dialect

    def committing(self, connection: PoolProxiedConnection) -> None:
        """`connection` is about to commit, and is marked before. If that fails, the caller has to roll back.

        Raises:
            ClaimLost: if the key is somebody else's by now.
            ClaimUnseen: if the transaction's snapshot does not show that it is not.
            Exception: the driver's, if the mark cannot be set.
        """
        marking = not self.marked and self._mark(connection)
        self.marked |= marking
        self._marking = marking
        self._pending = weakref.ref(connection)
        self.commits += 1

    def _mark(self, connection: PoolProxiedConnection) -> bool:
        mark = self._store.mark_unmarked if self.in_doubt else self._store.mark
        try:
            marked = mark(connection, self.id, self.owner)
        except ClaimUnseen:
            self.unseen = True
            raise
        if marked is False and self.in_doubt:  # or another one has the key: it is looked up before the answer
            raise ClaimLost(None, None, RuntimeError("an earlier COMMIT, whose reply was lost, was carried out"))
        if marked is False:
            self.lost = True
            raise ClaimLost(None, None, RuntimeError("the Idempotency-Key was given to another request"))
        return marked is True

    def committed(self) -> None:
        """What was pending has been carried out."""
        self._pending = None
        if self._marking and self.in_doubt:
            # The row was not marked, and its lock was free: what was in doubt has been rolled back.
            self.in_doubt = False
            if (request := current.get()) is not None:
                request.in_doubt = False

    def failed(self, context: ExceptionContext) -> None:
        """An operation on a connection, or getting one, failed."""
        error, connection = context.original_exception, context.connection
        failure = failures.classify(error, connecting=connection is None)
        self.database_failed |= context.is_disconnect or failure in _AWAY
        if context.statement is None and connection is not None and self._is_pending(connection):
            self.settle(refused=failures.refused(error) and not context.is_disconnect)

    def _is_pending(self, connection: Connection) -> bool:
        pending = None if self._pending is None else self._pending()
        if pending is None or connection.closed or connection.invalidated:
            return False
        return connection.connection is pending

    def settle(self, *, refused: bool) -> None:
        """What was pending has failed: the server `refused` it, or nobody knows."""
        self._pending = None
        if self._marking:
            self.marked = self._marking = False
        if refused:
            self.commits -= 1
        else:
            self.in_doubt = True

    # Transactions in two phases

    def prepared(self, xid: Any) -> None:
        """What was pending is prepared: from here on others may commit it as well."""
        self._pending = None
        if self._marking:
            self._prepared = xid

    def has_mark(self, xid: Any) -> bool:
        """Whether the mark is part of the prepared transaction `xid`."""
        return self._prepared is not None and self._prepared == xid

    def withdrawn(self, xid: Any) -> None:
        """The prepared transaction `xid` was rolled back."""
        if self.has_mark(xid):
            self._prepared = None
            self.marked = False


active: ContextVar[Claim | None] = ContextVar("wsgi_dbguard.claim", default=None)
