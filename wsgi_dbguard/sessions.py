"""The ORM sessions that a request used, and the state in which it leaves them.

A Session that a request leaves in a transaction keeps its connection, and one that a lost connection made invalid fails
every later request that shares it ("Can't reconnect until invalid transaction is rolled back"). When a request ends, or
is to run again, such a session is rolled back: its connection goes home, its objects stay attached and are read anew
when they are touched. It is not closed.

A session that another running request uses at the same moment is nobody's to roll back: it is left alone and told of,
with a `SharedSessionWarning`. So is, in silence, one that a thread of the application's own uses (in a copy of the
request's context, as `asyncio.to_thread` makes it): its work may outlive the request.

Sessions are found when they begin a transaction, which they do with the first thing that is done with them: an `add`
that nothing flushes may go to the database with the next request that uses it, so it counts before there is a
connection. One whose transaction began elsewhere, outside any request or in another one, is found by its statements
(`use`), which `transactions` sees: the ORM's own event for them, at class level, makes each some 2 µs dearer. One that
sends none, since it is invalid, is told by the error (`suspect`): from then on its own events are heard. An ``add`` to
such a session is not seen; so while one has changes that are not written, no request runs again (`keeps_changes`).
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from . import events, fork, registry, stacks
from .errors import SharedSessionWarning
from .link import KEY, Link
from .request import Request, current

__all__ = ["SESSION", "held", "keeps_changes", "release", "suspect", "use", "watch"]

logger = logging.getLogger(__name__)

current_request = current.get
_lock = threading.Lock()
# In a session's info: the requests that use it, weakly, as a test client may drop a response without closing it. The
# requests of a parent process are of no interest to its child.
_key = f"wsgi_dbguard.requests of {os.getpid()}"
_MANY = 64
SESSION = "wsgi_dbguard.session"  # in the __dict__ of a Connection: the Session that has begun with it last
_told: weakref.WeakSet[Session] = weakref.WeakSet()
_strays: weakref.WeakSet[Session] = weakref.WeakSet()  # in a transaction that no request began, or that one has left
_heard: weakref.WeakSet[Session] = weakref.WeakSet()
_watching = False


def watch() -> None:
    """Note with each request the sessions it uses. At the second call, nothing."""
    global _watching
    if not _watching:
        _watching = True
        event.listen(Session, "after_transaction_create", _on_use)
        event.listen(Session, "after_begin", _on_begin)
        # Whose transactions have begun before.
        if any(link.in_use for link in list(registry.links)):
            for session in registry.instances(*registry.family(Session)):
                _hear(session)


def _hear(session: Session) -> None:
    if session not in _heard:
        _heard.add(session)
        event.listen(session, "before_flush", _on_use)
        event.listen(session, "do_orm_execute", _on_execute)


def _on_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    # The Connection is told whose it is, and not the pool's connection: the way there is long.
    connection.__dict__[SESSION] = seen = weakref.ref(session)
    request = current_request()
    if request is not None:
        request.begun.append(weakref.ref(connection))
        if not len(request.begun) % _MANY:
            _prune(request.begun)
        if seen not in request.sessions or threading.get_ident() != request.thread:
            use(seen, request)


def _prune(references: list[weakref.ref[Any]]) -> None:
    """Most requests have a few; a response that streams for days may have any number, one after the other."""
    references[:] = [each for each in references if each() is not None]


def held(request: Request) -> Iterator[tuple[Session, Link]]:
    """What sessions have taken in `request`, and still have."""
    for each in request.begun:
        connection = each()
        if connection is not None and not connection.closed and not connection.invalidated:
            session = connection.__dict__[SESSION]()
            link = connection.connection.info.get(KEY)
            if session is not None and link is not None:
                yield session, link


def _on_use(session: Session, *ignored: Any) -> None:
    request = current_request()
    if request is not None:
        seen = weakref.ref(session)
        if seen not in request.sessions or threading.get_ident() != request.thread:
            use(seen, request)
    else:
        with _lock:
            _strays.add(session)


def use(seen: weakref.ref[Session], request: Request) -> None:
    """`request` does something with this Session, for the first time or in a thread of the application's own."""
    session = seen()
    if session is None:
        return
    if threading.get_ident() != request.thread:
        request.lend(session)
        return
    told = None
    with _lock:
        if request.ended is not None:  # a thread of the application's goes on
            return
        request.sessions.append(seen)
        if not len(request.sessions) % _MANY:
            _prune(request.sessions)
        info = session.info
        others = _running(info[_key]) if _key in info else ()
        info[_key] = [*map(weakref.ref, others), weakref.ref(request)] if others else [weakref.ref(request)]
        if others and session not in _told and not all(_related(request, each) for each in others):
            _told.add(session)
            paths = " and ".join(sorted(f"{each.method} {each.path}" for each in (*others, request)))
            told = f"one Session is used by requests that run at the same time: {paths}; it is not safe to share"
    if told is not None:
        logger.warning(told)
        warnings.warn(told, SharedSessionWarning, stacklevel=3)


def _running(known: Iterable[weakref.ref[Request]]) -> list[Request]:
    """Those of the requests that use a Session which have not ended."""
    return [request for each in known if (request := each()) is not None]


def _related(one: Request, other: Request) -> bool:
    """Whether one of the two is made by the other's application, and so takes its turn with it."""
    return one.is_within(other) or other.is_within(one)


def _on_execute(state: ORMExecuteState) -> None:
    _on_use(state.session)


def release(request: Request, leaks: str) -> str:
    """Roll back what `request` left in a transaction; `leaks` is the setting, "off" for silence and no action.

    Never raises. Returns what there is to tell, "" for nothing.
    """
    left = 0
    places: list[str] = []
    for seen in list(request.sessions):
        session = seen()
        if session is None:
            continue
        with _lock:
            alone = all(each is request for each in _running(session.info.get(_key, ())))
        if alone and leaks != "off" and session not in request.lent and session.in_transaction():
            left += 1
            if request.trace is not None:
                places += _places(session, request)
            if leaks != "warn":
                _roll_back(session)
        kept = session.in_transaction()
        request.keeps |= kept and _has_changes(session)
        with _lock:  # only now: whoever takes it in the meantime is told
            if kept:
                _strays.add(session)
            session.info[_key] = [
                weakref.ref(each) for each in _running(session.info.get(_key, ())) if each is not request
            ]
    request.sessions.clear()
    if not left:
        return ""
    message = "\n".join([f"{request.method} {request.path} left {left} Session(s) in a transaction", *places])
    logger.info("%s; %s", message, "left alone" if leaks == "warn" else "rolled back")
    events.note("a request left a session in a transaction", bad=True)
    return message


def suspect() -> None:
    """A stray may be invalid by now, so that no statement tells who uses it: hear of that from the session itself."""
    for session in _in_transaction():
        _hear(session)


def keeps_changes(request: Request) -> bool:
    """Whether changes that are not written yet, of `request` or of nobody knows whom, wait in a session for a flush.

    Asked when its sessions are released.
    """
    if request.keeps or any(each.in_transaction() for each in list(request.lent)):
        return True
    around = [session for each in request.chain() for seen in list(each.sessions) if (session := seen()) is not None]
    return any(map(_has_changes, around)) or any(
        _has_changes(each) for each in _in_transaction() if not _running(each.info.get(_key, ()))
    )


def _in_transaction() -> list[Session]:
    """Of the strays, those that are; the others are none any more."""
    with _lock:
        for session in list(_strays):
            if not session.in_transaction():
                _strays.discard(session)
        return list(_strays)


def _has_changes(session: Session) -> bool:
    try:
        return bool(session.new or session.deleted or session.dirty)
    except RuntimeError:  # another thread makes some
        return True


def _places(session: Session, request: Request) -> list[str]:
    """Where `request` began the transaction of `session`: its connection was taken there, one for each engine."""
    return [
        f"begun at {stacks.render(link.taken_at)}"
        for each, link in held(request)
        if each is session and link.owner is request.owner and link.taken_at is not None
    ]


def _roll_back(session: Session) -> None:
    try:
        session.rollback()
    except Exception:  # the connection broke in it: the session has let go of it all the same
        logger.debug("rollback of a session that was left behind failed", exc_info=True)


def _after_fork() -> None:
    global _lock, _key
    _lock = threading.Lock()  # a thread that is not here may have held it
    _key = f"wsgi_dbguard.requests of {os.getpid()}"
    if _strays:
        suspect()


fork.on_fork(_after_fork)
