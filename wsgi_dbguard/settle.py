"""A COMMIT whose reply was lost: was it carried out? PostgreSQL can tell, where the transaction's id is known.

The id has to be asked for before the COMMIT, which is a round trip, so this is only done where the setting ``settle``
asks for it, and in a request only for what may have written. When the connection is lost during the COMMIT, the server
is asked on another connection what became of that transaction (`pg_xact_status`; PostgreSQL 13 and later):

* committed: the commit has succeeded. The application goes on as if the reply had come.
* aborted: nothing was saved, so the error is an ordinary lost connection, after which a request may run again.
* no answer: it stays in doubt, as it is without this.

A transaction's id means something only in one history of the database. A replica that was promoted in between, or the
server itself after a crash in which the last ids were lost, may have given the same id to another transaction. So the
timeline is asked for too, and when the statistics began, which a crash resets; where one differs, there is no answer.
"""

from __future__ import annotations

import logging
import time
import weakref
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

from sqlalchemy import Engine
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import PoolProxiedConnection

from . import failures
from .config import GuardConfig
from .failures import Failure
from .link import KEY, Link
from .request import current
from .transactions import may_have_written
from .watchdog import Deadline

__all__ = ["settle"]

logger = logging.getLogger(__name__)

_KEY = "wsgi_dbguard.transaction"  # in the DBAPI connection's info, during a COMMIT
_PAUSE = 0.02  # seconds, while the server still works at the COMMIT
_HISTORY = (
    "left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || ' '"
    " || (SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter)"
)
_IDENTIFY = f"SELECT pg_current_xact_id_if_assigned()::text, {_HISTORY}"
_ASK = f"SELECT pg_xact_status('{{id}}'::xid8), {_HISTORY}"
_watched: weakref.WeakSet[Dialect] = weakref.WeakSet()  # of an engine and its execution_options() copies


class _Transaction(NamedTuple):
    id: str  # empty: the connection was lost before the COMMIT was sent
    history: str | None = None


def settle(engine: Engine, config: GuardConfig) -> None:
    """From now on find out what became of a COMMIT that `engine` has lost the reply of. At the second call, nothing.

    For PostgreSQL; with other databases nothing changes.
    """
    if engine.dialect.name != "postgresql" or engine.dialect in _watched:
        return
    _watched.add(engine.dialect)
    found, seconds = weakref.ref(engine), config.ping_timeout
    dialect, do_commit = engine.dialect, engine.dialect.do_commit

    # SQLAlchemy has an event before a COMMIT, and none around it.
    def commit(connection: PoolProxiedConnection) -> None:
        _identify(dialect, connection)
        try:
            do_commit(connection)
        except Exception as error:
            transaction = connection.info.pop(_KEY, None) if connection.is_valid else None
            asked = found()
            if transaction is None or asked is None or not _lost(dialect, error, connection):
                raise
            if not _is_committed(asked, transaction, seconds):
                raise
            logger.warning("a connection was lost during a COMMIT, which was carried out: %s", error)
        else:
            connection.info.pop(_KEY, None)

    dialect.do_commit = commit  # type: ignore[method-assign, assignment]


def _identify(dialect: Dialect, connection: PoolProxiedConnection) -> None:
    """Ask for the id of the transaction that is about to be committed.

    Raises:
        Exception: the driver's, if the server refuses to tell. It has aborted the transaction then, and would take the
            COMMIT for a ROLLBACK without a word.
    """
    if (getattr(dialect, "server_version_info", None) or ()) < (13,):
        return
    request = current.get()
    # Before or after `transactions` has seen the same commit.
    committing = None if request is None or request.committing is None else request.committing()
    if request is not None and committing is not connection and not may_have_written(connection, request):
        return
    try:
        with closing(connection.cursor()) as cursor:
            cursor.execute(_IDENTIFY)
            number, history = cursor.fetchone() or (None, None)
    except Exception as error:
        if not _lost(dialect, error, connection):
            # SQLAlchemy takes a transaction whose COMMIT has failed for ended, and would not roll it back.
            dialect.do_rollback(connection)
            raise
        connection.info[_KEY] = _Transaction("")  # the COMMIT will meet the same, and never reach the server
        return
    if number is not None:
        connection.info[_KEY] = _Transaction(number, history)


def _lost(dialect: Dialect, error: Any, connection: PoolProxiedConnection) -> bool:
    if failures.classify(error) is Failure.DISCONNECT:
        return True
    return isinstance(error, dialect.loaded_dbapi.Error) and dialect.is_disconnect(error, connection, None)


def _is_committed(engine: Engine, transaction: _Transaction, seconds: float) -> bool:
    """Whether `transaction` is known to be committed. If it is known not to be, the request is told so as well."""
    status = _status(engine, transaction, seconds) if transaction.id else "aborted"
    request = current.get()
    if status == "aborted" and request is not None and request.committing is not None:
        request.committing = None  # the error that follows is not in doubt
        request.note(commits=-1)
    return status == "committed"


def _status(engine: Engine, transaction: _Transaction, seconds: float) -> str | None:
    token = current.set(None)  # no deed of the request's
    try:
        connection = engine.connect()
        link: Link | None = connection.connection.info.get(KEY)
        until = time.monotonic() + seconds
        # The server may be one that answers nobody, which is why the reply was lost.
        with nullcontext() if link is None else Deadline(seconds, link.cut), connection:
            while True:
                status, history = connection.exec_driver_sql(_ASK.format(id=transaction.id)).one()
                if history is None or history != transaction.history:
                    return None
                if status != "in progress" or time.monotonic() > until:
                    return str(status)
                connection.rollback()
                time.sleep(_PAUSE)
    except Exception:
        logger.warning("what became of transaction %s cannot be told", transaction.id, exc_info=True)
        return None
    finally:
        current.reset(token)
