"""What a request has done that stays done: its commits, finished or in doubt.

A request may run a second time only if its first run has left nothing behind. So everything that could have made a
write last counts as a commit, and what cannot be known counts as well: a COMMIT whose reply was lost (in doubt), a
write in autocommit, a statement with which the server commits by itself (DDL in MySQL, CALL), a COMMIT typed as text,
several statements in one text; and each connection that was taken past SQLAlchemy's Connection is counted apart
(`Engine.raw_connection`: its statements are not to be seen, see `checkout`).

What only reads does not count in a request whose method is safe: committing it changes nothing. In any other request
each COMMIT counts, since a function that a SELECT calls may write; so does a SELECT that calls one in autocommit.

Not to be known from here, and so the application's to know: writes past a Connection that SQLAlchemy made
(``session.connection().connection.cursor()``) and committed there; tables without transactions (MyISAM); threads of
its own that do not run in a copy of the request's context. Where SQLAlchemy has sent the write to PostgreSQL, a
``commit()`` of the driver's is known by the rollback after it: no transaction is left.

Statements are seen by the dialect's events (`do_execute`), COMMIT and ROLLBACK by methods of the dialect that are put
around its own. SQLAlchemy's connection events (`before_cursor_execute`, `commit`, …) would tell the same, but the first
listener to any of them makes each statement some 6 µs and each Connection some 20 µs dearer. Optional modules that want
to know as well are told from here (`sent`, `request.unseen`).
"""

from __future__ import annotations

import functools
import re
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect, ExceptionContext, ExecutionContext
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection

from . import checkout, failover, sessions, state
from .patterns import lazily
from .request import Request, current, unseen
from .sessions import SESSION
from .statements import touches

__all__ = ["commits_by_itself", "hides", "may_have_written", "on_rollback", "only_reads", "sent", "watch"]

sent: list[Callable[[Request, Connection, bool], object]] = []
"""Optional modules, called with each statement of a request that may write, and whether it plainly reads all the same:
in a request whose method is safe most of those that do are not told of."""

current_request = current.get
_watched: weakref.WeakSet[Dialect] = weakref.WeakSet()

_WORD = re.compile(r"(?:\s|/\*.*?\*/|--[^\n]*\n|\()*([a-z]+)", re.IGNORECASE | re.DOTALL)
_WRITES = re.compile(r"\b(insert|update|delete|merge|into|call|replace)\b|;\s*\S", re.IGNORECASE)
_SEVERAL = lazily(r";\s*\S")
_CALLS = lazily(r"\w\s*\(")  # "in (" as well: it errs towards not running again
_AUTOCOMMIT = lazily(r"\bautocommit\b", re.IGNORECASE)
_PREPARE_TRANSACTION = lazily(r"\bprepare\s+transaction\b", re.IGNORECASE)
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
    dialect = engine.dialect
    if dialect in _watched:
        return
    _watched.add(dialect)
    checkout.listen(engine.pool)
    event.listen(engine, "do_execute", _on_statement)
    event.listen(engine, "do_executemany", _on_statement)
    event.listen(engine, "do_execute_no_params", _on_statement_alone)
    event.listen(engine, "handle_error", _on_error)
    on_commit = functools.partial(_on_commit, dialect)
    dialect.do_commit = _told(on_commit, dialect.do_commit)  # type: ignore[method-assign]
    dialect.do_rollback = _seen(dialect.do_rollback)  # type: ignore[method-assign, assignment]
    for name in ("do_prepare_twophase", "do_commit_twophase"):  # after the first of them, others may commit it
        setattr(dialect, name, _told(lambda connection: on_commit(connection.connection), getattr(dialect, name)))


def _told(listener: Callable[[Any], None], method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` of a dialect, with `listener` told of the connection before; and what comes after it is no COMMIT."""

    @functools.wraps(method)
    def told(connection: Any, *args: Any, **keywords: Any) -> Any:
        listener(connection)
        result = method(connection, *args, **keywords)
        request = current_request()
        if request is not None:
            request.committing = None  # a fetch from a cursor that the COMMIT has closed fails without a statement
        return result

    return told


def _on_statement_alone(cursor: Any, statement: str, context: ExecutionContext) -> None:
    _on_statement(cursor, statement, None, context)


def _on_statement(cursor: Any, statement: Any, parameters: Any, context: ExecutionContext) -> None:
    # The hot path: each line is paid for every statement, see tests/benchmarks/growth.py.
    request = current_request()
    if request is None:
        return
    connection = context.root_connection
    session: weakref.ref[Session] | None = connection.__dict__.get(SESSION)
    if session is not None and (session not in request.sessions or threading.get_ident() != request.thread):
        sessions.use(session, request)
    request.statements += 1
    request.committing = None
    if not isinstance(statement, str):  # drivers take bytes, and texts of a type of their own
        statement = statement.decode(errors="replace") if isinstance(statement, bytes) else ""
    # Optimization: SQLAlchemy sends the same few texts again and again. Long ones are not worth their memory.
    reads, changes = _judged(statement) if len(statement) <= _CACHED_LENGTH else _judged.__wrapped__(statement)
    if (reads and not changes and request.safe) or _is_the_dialects(connection):
        return
    for tell in sent:
        tell(request, connection, reads)
    if changes and request.heals:
        state.note(connection, statement, parameters, request)
    if reads:
        if not request.safe and _CALLS.search(statement) and _in_autocommit(connection):
            request.note(commits=1)
    elif commits_by_itself(statement, connection.dialect.name) or _in_autocommit(connection):
        request.note(commits=1)
    else:
        request.write(connection)


def _is_the_dialects(connection: Connection) -> bool:
    """Whether it is on the very first connection of an engine, which has no pool entry yet: what the dialect asks."""
    try:
        connection.connection.info  # noqa: B018
    except NotImplementedError:
        return True
    return False


@lru_cache(maxsize=512)
def _judged(statement: str) -> tuple[bool, bool]:
    """Whether it only reads, and whether it may change what outlives the transaction."""
    return _only_reads(statement), touches(statement)


def _on_error(context: ExceptionContext) -> None:
    if context.is_disconnect and current_request() is None:
        sessions.suspect()


def _in_autocommit(connection: Connection) -> bool:
    try:
        dbapi_connection = connection.connection.dbapi_connection
        return dbapi_connection is None or connection.dialect.detect_autocommit_setting(dbapi_connection)
    except NotImplementedError:
        return True  # the driver does not tell: then it must be taken for granted


def _on_commit(dialect: Dialect, proxied: PoolProxiedConnection) -> None:
    # It comes before the COMMIT is sent: from here on it counts, until the server itself says that it failed.
    request = current_request()
    if request is None:
        return
    if request.changes:
        state.committed(proxied)
    written = request.writer(proxied)
    if written is not None:
        request.written(written)
    if written is not None or not _safe(request) or hides(dialect):
        request.note(commits=1)
        request.committing = weakref.ref(proxied)
        for tell in unseen:
            tell(request, dialect)


def _safe(request: Request) -> bool:
    return request.safe and (request.outer is None or _safe(request.outer))


def hides(dialect: Dialect) -> bool:
    """Whether somebody else listens to statements, and may send some of them instead of SQLAlchemy, unseen by us."""
    listeners = (*dialect.dispatch.do_execute, *dialect.dispatch.do_executemany)
    return any(each is not _on_statement for each in listeners)


def _seen(rollback: Callable[[PoolProxiedConnection], None]) -> Callable[[PoolProxiedConnection], None]:
    """What `_told` does, at less cost: there is one or two for each checkout."""

    @functools.wraps(rollback)
    def do_rollback(proxied: PoolProxiedConnection) -> None:
        on_rollback(proxied)
        rollback(proxied)

    return do_rollback


def on_rollback(proxied: PoolProxiedConnection) -> None:
    """`proxied` is about to be rolled back, or need not be. Twice is as good as once."""
    request = current_request()
    if request is not None:
        request.committing = None
        written = request.writer(proxied) if request.unfinished or request.outer is not None else None
        if written is not None:
            request.written(written)
            if state.has_ended(proxied):  # by the driver's own commit(), as it seems
                request.note(commits=1)
        if request.changes:
            state.rolled_back(proxied)
        if request.refused is not None:
            failover.ask(request, proxied)


def may_have_written(proxied: PoolProxiedConnection, request: Request) -> bool:
    """Whether what `request` is about to commit on `proxied` may change anything."""
    return not _safe(request) or request.writer(proxied) is not None
