"""What an operation that failed tells of its connection, of the pool, and of the request that it failed.

`hear` is the listener to SQLAlchemy's ``handle_error`` of each guarded engine. SQLAlchemy invalidates a connection that
broke; its siblings are condemned here, the dialects' gaps in knowing what a lost connection is are filled, and the
error that the application gets is the guard's own where that says more.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sqlalchemy.engine import ExceptionContext

from . import failures
from .errors import DatabaseUnavailable, OutcomeUnknown
from .failover import refused
from .failures import Failure
from .link import KEY, Link
from .request import current

if TYPE_CHECKING:
    from .pool import PoolGuard

__all__ = ["hear"]


def hear(guard: PoolGuard, context: ExceptionContext) -> DatabaseUnavailable | OutcomeUnknown | None:
    """An operation on a connection of `guard`'s pool failed, or none could be opened.

    The error that SQLAlchemy is to raise instead of its own; None: its own.
    """
    connection = context.connection
    if connection is None:
        return _not_opened(guard, context)
    if connection.closed or connection.invalidated:
        return None
    try:
        link: Link | None = connection.connection.info.get(KEY)
    except NotImplementedError:  # the dialect's questions on the very first connection have no pool entry
        return _not_opened(guard, context)
    if link is None or link.guard is not guard:
        return None
    if not isinstance(context.original_exception, Exception) and context.statement is not None:
        _stop(link, context.statement)
    failure = failures.classify(context.original_exception)
    if failure is Failure.DISCONNECT:
        context.is_disconnect = True  # the drivers' dialects do not know all of them
    elif context.is_disconnect and failure is Failure.OTHER:
        failure = Failure.DISCONNECT  # and the table does not know all that they do
    replica = guard.probe_timeout is not None
    in_doubt = False
    request = current.get()
    if request is not None:
        in_doubt = request.database_failed(
            failure,
            connection,
            committing=context.statement is None,
            refused=not context.is_disconnect and failures.refused(context.original_exception),
            replica=replica,
        )
        if failure is Failure.READ_ONLY and not replica:
            refused(request, link, context.original_exception)
    # An interrupt (a greenlet's timeout, SystemExit) costs this connection but says nothing of the others: SQLAlchemy
    # then does not want the pool invalidated, and neither may a listener of the user's. It takes a socket's
    # TimeoutError (pg8000 lets it through) for asyncio's, which is an interrupt.
    if context.is_disconnect and (
        context.invalidate_pool_on_disconnect or failures.network_failed(context.original_exception)
    ):
        context.invalidate_pool_on_disconnect = False
        guard.condemn(link, "broke in use")
    elif failure is Failure.READ_ONLY and guard.config.evict_readonly and not replica:
        guard.failover.suspect(guard)
    if in_doubt and isinstance(context.original_exception, Exception):
        return OutcomeUnknown(None, None, context.original_exception, connection_invalidated=context.is_disconnect)
    return None


def _stop(link: Link, statement: str) -> None:
    """The query was interrupted here: have the server end it as well."""
    with contextlib.suppress(ImportError, OSError):  # such as out of descriptors
        from . import canceller  # here: a process that is not interrupted has no use for it

        canceller.interrupted(link, statement)


def _not_opened(guard: PoolGuard, context: ExceptionContext) -> DatabaseUnavailable | None:
    failure = failures.classify(context.original_exception, connecting=True)
    request = current.get()
    if request is not None and not context.is_pre_ping:
        request.database_failed(failure, committing=False, replica=guard.probe_timeout is not None)
    # Who tried is told the same as who was refused.
    if failure is Failure.UNAVAILABLE and guard.breaker.away:
        return DatabaseUnavailable(None, None, context.original_exception)
    return None
