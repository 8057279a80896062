"""What a request has done that stays done: its commits, finished or in doubt, from SQLAlchemy's public events.

A request may run a second time only if its first run has left nothing behind. So everything that could have made a
write last counts as a commit, and what cannot be known counts as well: a COMMIT whose reply was lost (in doubt), a
write in autocommit, a statement with which the server commits by itself (DDL in MySQL, CALL), a COMMIT typed as text,
several statements in one text; and each connection that was taken past SQLAlchemy's Connection is counted apart
(`Engine.raw_connection`: its statements are not to be seen).

What only reads does not count in a request whose method is safe: committing it changes nothing. In any other request
each COMMIT counts, since a function that a SELECT calls may write; so does a SELECT that calls one in autocommit.

Not to be known from here, and so the application's to know: writes past a Connection that SQLAlchemy made
(``session.connection().connection.cursor()``) and committed there; tables without transactions (MyISAM); threads of
its own that do not run in a copy of the request's context.

Listening to statements makes SQLAlchemy dispatch its connection events: about 3 µs a statement, so only under a
`DBGuard` that replays or answers are engines watched, not under `guard` alone.
"""

from __future__ import annotations

import re
import weakref
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, event

from . import state
from .changes import touches
from .request import Request, current

__all__ = ["commits_by_itself", "may_have_written", "only_reads", "watch"]

_watched: weakref.WeakSet[Engine] = weakref.WeakSet()

_WORD = re.compile(r"(?:\s|/\*.*?\*/|--[^\n]*\n|\()*([a-z]+)", re.IGNORECASE | re.DOTALL)
_WRITES = re.compile(r"\b(insert|update|delete|merge|into|call|replace)\b|;\s*\S", re.IGNORECASE)
_SEVERAL = re.compile(r";\s*\S")
_CALLS = re.compile(r"\w\s*\(")  # "in (" as well: it errs towards not running again
_AUTOCOMMIT = re.compile(r"\bautocommit\b", re.IGNORECASE)
_PREPARE_TRANSACTION = re.compile(r"\bprepare\s+transaction\b", re.IGNORECASE)
_CACHED_LENGTH = 4096  # characters
_READS = frozenset({"select", "show", "values", "table", "explain", "describe", "desc", "with"})
# What leaves a transaction open, so that a rollback still undoes it. In PostgreSQL DDL too; MySQL commits before it.
_TRANSACTIONAL = frozenset(
    {"insert", "update", "delete", "merge", "replace", "savepoint", "release", "rollback", "set", "lock", "fetch",
     "close"}
)  # fmt: skip
_TRANSACTIONAL_DDL = frozenset(
    {"create", "alter", "drop", "truncate", "comment", "grant", "revoke", "copy", "declare", "move", "notify", "listen",
     "unlisten", "discard", "reset", "analyze", "refresh", "execute", "prepare", "deallocate", "import", "security"}
)  # fmt: skip


def _first_word(statement: str) -> str:
    match = _WORD.match(statement)
    return match.group(1).lower() if match else ""


def only_reads(statement: str) -> bool:
    """Whether `statement` plainly only reads; when in doubt, no. A function that it calls is taken at its word."""
    # Optimization: SQLAlchemy sends the same few texts again and again. Long ones are not worth their memory.
    return _only_reads(statement) if len(statement) <= _CACHED_LENGTH else _only_reads.__wrapped__(statement)


@lru_cache(maxsize=512)
def _only_reads(statement: str) -> bool:
    return _first_word(statement) in _READS and not _WRITES.search(statement)


def commits_by_itself(statement: str, dialect: str) -> bool:
    """Whether the server may have committed when `statement` is done, without being told; when in doubt, yes."""
    if ";" in statement and _SEVERAL.search(statement):
        return True
    word = _first_word(statement)
    if word in _TRANSACTIONAL or word in _READS:
        if dialect == "postgresql":
            return False
        return word == "lock" or (word == "set" and bool(_AUTOCOMMIT.search(statement)))  # they end one in MySQL
    if dialect == "postgresql" and word in _TRANSACTIONAL_DDL:
        return word == "prepare" and bool(_PREPARE_TRANSACTION.search(statement))
    return True


def watch(engine: Engine) -> None:
    """Note the commits of `engine` with the request that makes them. At the second call, nothing."""
    if engine not in _watched:
        _watched.add(engine)
        event.listen(engine, "checkout", _on_checkout)
        event.listen(engine, "engine_connect", _on_connection)
        event.listen(engine, "before_cursor_execute", _on_statement)
        event.listen(engine, "commit", _on_commit)
        event.listen(engine, "rollback", _on_rollback)
        event.listen(engine, "commit_twophase", _on_commit_twophase)
        event.listen(engine, "prepare_twophase", _on_prepare_twophase)


def _on_checkout(*ignored: Any) -> None:
    request = current.get()
    if request is not None:
        request.note(unseen=1)


def _on_connection(connection: Connection) -> None:
    request = current.get()
    if request is not None:
        request.note(unseen=-1)  # it was a Connection that took it


def _on_statement(connection: Connection, cursor: Any, statement: str, parameters: Any, *ignored: Any) -> None:
    request = current.get()
    if request is None:
        return
    request.statements += 1
    request.committing = None
    if request.heals and touches(statement):
        state.note(connection, statement, parameters, request)
    if only_reads(statement):
        if not request.safe and _in_autocommit(connection) and _CALLS.search(statement):
            request.note(commits=1)
        return
    if commits_by_itself(statement, connection.dialect.name) or _in_autocommit(connection):
        request.note(commits=1)
    else:
        request.unfinished.add(connection)


def _in_autocommit(connection: Connection) -> bool:
    try:
        dbapi_connection = connection.connection.dbapi_connection
        return dbapi_connection is None or connection.dialect.detect_autocommit_setting(dbapi_connection)
    except NotImplementedError:
        return True  # the driver does not tell: then it must be taken for granted


def may_have_written(connection: Connection, request: Request) -> bool:
    """Whether what `request` is about to commit on `connection` may change anything."""
    return not request.safe or connection in request.unfinished


def _on_commit(connection: Connection) -> None:
    # It comes before the COMMIT is sent: from here on it counts, until the server itself says that it failed.
    request = current.get()
    if request is not None and request.changes:
        state.committed(connection)
    if request is not None and may_have_written(connection, request):
        request.unfinished.discard(connection)
        request.note(commits=1)
        request.committing = weakref.ref(connection)


def _on_prepare_twophase(connection: Connection, *ignored: Any) -> None:
    _on_commit(connection)  # from here on, others may commit it


def _on_commit_twophase(connection: Connection, *ignored: Any) -> None:
    _on_commit(connection)


def _on_rollback(connection: Connection) -> None:
    request = current.get()
    if request is not None:
        request.committing = None
        request.unfinished.discard(connection)
        if request.changes:
            state.rolled_back(connection)
