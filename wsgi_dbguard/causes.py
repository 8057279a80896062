"""Was it the database that failed a request? By the exception with which the request ended."""

from __future__ import annotations

from sqlalchemy import exc
from sqlalchemy.orm.exc import StaleDataError

from . import failures, leaks, sessions
from .failures import Failure

__all__ = ["failure_behind"]

_OF_THE_STATEMENT = (exc.IntegrityError, exc.DataError, exc.ProgrammingError, exc.NotSupportedError)
_LONGEST_CHAIN = 100  # errors; a chain that was put together by hand may be a circle


def failure_behind(error: BaseException, known: Failure | None) -> Failure | None:
    """How the database failed the request that ended with `error`; None if this has nothing to do with the database.

    `known` is the last failure that SQLAlchemy's events have told of this request.
    """
    cause = _database_error(error)
    if cause is None:
        # pg8000 lets the socket's own error through. Any other is something else, whatever the database did before.
        return known if failures.network_failed(error) else None
    if isinstance(cause, StaleDataError):
        return Failure.STALE
    if isinstance(cause, exc.TimeoutError):  # the pool's, which no event tells
        leaks.tell_holders()
        return Failure.UNAVAILABLE
    if isinstance(cause, exc.DBAPIError):
        told = failures.classify(cause)
        if told is Failure.OTHER:
            # After a deadline no statement is sent that could fail by itself; pg8000 calls a cancelled one a
            # ProgrammingError.
            return None if isinstance(cause, _OF_THE_STATEMENT) and known is not Failure.DEADLINE else known
        return known or told  # of an engine that is not guarded
    if isinstance(cause, exc.PendingRollbackError):
        sessions.suspect()
    return known  # it says that something failed before


def _database_error(error: BaseException | None) -> BaseException | None:
    """The first error of SQLAlchemy's in the chain of `error`: an application may have put its own around it."""
    for _ in range(_LONGEST_CHAIN):
        if error is None or isinstance(error, exc.SQLAlchemyError):
            return error
        error = error.__cause__ or error.__context__
    return None
