"""The ORM sessions that a request used, and the state in which it leaves them.

A Session that a request leaves in a transaction keeps its connection, and one that a lost connection made invalid fails
every later request that shares it ("Can't reconnect until invalid transaction is rolled back"). When a request ends, or
is to run again, such a session is rolled back: its connection goes home, its objects stay attached and are read anew
when they are touched. It is not closed.

A session that another running request uses at the same moment is nobody's to roll back: it is left alone and told of,
with a `SharedSessionWarning`. So is, in silence, one that a thread of the application's own uses (in a copy of the
request's context, as `asyncio.to_thread` makes it): its work may outlive the request.

Sessions are found by class-level events of the ORM: a transaction that begins, a statement, a flush; the latter two
for a session whose transaction began outside any request.
"""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session

from . import fork
from .errors import LeakWarning, SharedSessionWarning
from .request import Request, current

__all__ = ["release", "watch"]

logger = logging.getLogger(__name__)

_lock = threading.Lock()
# Weakly on both sides: a test client may drop a response without closing it.
_users: weakref.WeakKeyDictionary[Session, weakref.WeakSet[Request]] = weakref.WeakKeyDictionary()
_told: weakref.WeakSet[Session] = weakref.WeakSet()
_watching = False


def watch() -> None:
    """Note with each request the sessions it uses. At the second call, nothing."""
    global _watching
    if not _watching:
        _watching = True
        event.listen(Session, "after_begin", _on_use)
        event.listen(Session, "before_flush", _on_use)
        event.listen(Session, "do_orm_execute", _on_execute)


def _on_use(session: Session, *ignored: Any) -> None:
    request = current.get()
    if request is None:
        return
    if threading.get_ident() != request.thread:
        request.lend(session)
        return
    if session in request.sessions:
        return
    told = None
    with _lock:
        if request.ended is not None:  # a thread of the application's goes on
            return
        request.sessions.add(session)
        users = _users.setdefault(session, weakref.WeakSet())
        users.add(request)
        if session not in _told and not all(_related(request, each) for each in users):
            _told.add(session)
            paths = " and ".join(sorted(f"{each.method} {each.path}" for each in users))
            told = f"one Session is used by requests that run at the same time: {paths}; it is not safe to share"
    if told is not None:
        logger.warning(told)
        warnings.warn(told, SharedSessionWarning, stacklevel=3)


def _related(one: Request, other: Request) -> bool:
    """Whether one of the two is made by the other's application, and so takes its turn with it."""
    return one.is_within(other) or other.is_within(one)


def _on_execute(state: ORMExecuteState) -> None:
    _on_use(state.session)


def release(request: Request, leaks: str) -> None:
    """Roll back what `request` left in a transaction; `leaks` is the setting, "off" for silence and no action.

    Never raises but for ``leaks="raise"``, where the leak itself is the error, and where a warning is made one.

    Raises:
        LeakWarning: with "raise", if a session was left in a transaction. It is rolled back all the same.
    """
    left = 0
    for session in list(request.sessions):
        with _lock:
            alone = all(each is request for each in _users.get(session, ()))
        if alone and leaks != "off" and session not in request.lent and session.in_transaction():
            left += 1
            if leaks != "warn":
                _roll_back(session)
        with _lock:  # only now: whoever takes it in the meantime is told
            users = _users.get(session)
            if users is not None:
                users.discard(request)
    request.sessions.clear()
    if left:
        message = f"{request.method} {request.path} left {left} Session(s) in a transaction"
        logger.info("%s; %s", message, "left alone" if leaks == "warn" else "rolled back")
        if leaks == "raise":
            raise LeakWarning(message)
        if leaks == "warn":
            warnings.warn(message, LeakWarning, stacklevel=2)


def _roll_back(session: Session) -> None:
    try:
        session.rollback()
    except Exception:  # the connection broke in it: the session has let go of it all the same
        logger.debug("rollback of a session that was left behind failed", exc_info=True)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that is not here may have held it
    _users.clear()


fork.on_fork(_after_fork)
