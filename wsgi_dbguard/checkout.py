"""What is done at each checkout: is the connection that is about to be handed out alive?

One listener on the class `Pool`, in front of all others. A listener of the application's own, on the class or on its
engine, may use the connection, and is not to meet a dead one; and whatever is on the class comes before all that is on
an engine. So it is called for the pools of this process that no guard looks after, too, and checks nothing there.

In a request it also sees whether it is SQLAlchemy's Connection that takes the connection. One that is taken past that
(`Engine.raw_connection`) may write what nobody sees.

There is no listener at checkin: "idle" counts from the last checkout. That saves one event for each use, and costs a
ping after a use longer than ping_after, a reconnect after one longer than idle_timeout.
"""

from __future__ import annotations

import sys
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection

from . import breaker, flags, registry
from .link import KEY, Link
from .process import here
from .request import current, unseen

if TYPE_CHECKING:
    from .pool import PoolGuard

__all__ = ["check", "listen"]

current_request = current.get


def listen(pool: Pool | None = None) -> None:
    """From now on `check` is called at each checkout, also of `pool`. At the second call, nothing."""
    if not event.contains(Pool, "checkout", check):
        event.listen(Pool, "checkout", check, insert=True)
    # A class of pools may hear nothing of the class Pool's (`_sa_propagate_class_events`).
    if pool is not None and check not in pool.dispatch.checkout:
        event.listen(pool, "checkout", check, insert=True)


def check(connection: Any, entry: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
    """A pool is handing out `connection`, of its `entry`, as `proxy`.

    Raises:
        sqlalchemy.exc.DisconnectionError: if it must not be used; SQLAlchemy then replaces it and asks again.
    """
    # The hot path: each line is paid at every checkout, see tests/benchmarks/checkouts.py.
    try:
        link: Link = entry.info[KEY]
    except KeyError:  # the application has cleared it
        link = registry.known_link_of(connection, entry)
        link.guard = link.guard or breaker.guard_of(registry.pool_of(entry))
    request = current_request()
    guard = link.guard
    if guard is not None:
        now = monotonic()
        shared = guard.shares_one and _has_others(guard, link, proxy)
        if not shared and (
            link.look()
            or link.doomed is not None
            or now - link.used > guard.attention
            or now > link.expires
            or link.changed is not None
            # A request has made sure of its process when it began.
            or (request is None and not here[0])
        ):
            guard.examine(connection, entry, link)
        if request is not None:
            if not shared:
                if request.heals and link.flags(connection) != link.baseline and not flags.settle(connection, link):
                    raise guard.replace("changed", link)
                link.taken = weakref.ref(proxy)
                link.lent = threading.get_ident() != request.thread
                link.taken_at = request.trace() if request.trace is not None else None
            request.checkouts += 1
            # In this order: a former owner that is just ending reads them in the other one, see `leaks`.
            if link.owner is not request.owner:
                link.owner = request.owner
                request.links.append(link)
        elif not shared:
            link.owner = None
        link.used = now
        link.uses += 1
    if request is not None:
        try:
            past = sys._getframe(_FRAMES).f_code not in _CONNECTIONS and not _is_connections()
        except ValueError:  # there are not so many
            past = not _is_connections()
        if past:
            request.note(unseen=1)
        if unseen and (past or not request.safe):
            for dialect in _dialects(registry.pool_of(entry)):
                for tell in unseen:
                    tell(request, dialect)


def _has_others(guard: PoolGuard, link: Link, proxy: PoolProxiedConnection) -> bool:
    """StaticPool hands one connection to many at once: a second user must not ping, or replace, the first one's."""
    # Who has it is asked of the users: of several, SQLAlchemy reports one checkin only.
    with guard.lock:
        others = any(user.is_valid for user in link.users if user is not proxy)
        link.users.add(proxy)
    return others


# A Connection takes its connection when it is made, and once more after that one was invalidated.
# No set: to hash a function's code takes longer than to compare it with both.
_CONNECTIONS = (Connection.__init__.__code__, Connection._revalidate_connection.__code__)
# SQLAlchemy's own frames, from `check`: less than there are where a listener takes one while a Connection is made. To
# look at each frame is dear.
_FRAMES = 5
_NEAR = 14  # where a pool or an instrument of the application's adds some


def _is_connections() -> bool:
    """Whether it is a Connection that takes this one from the pool.

    SQLAlchemy's events of a Connection would tell as well, and make it 20 µs dearer, see `transactions`.
    """
    listeners = sys._getframe(2)  # where SQLAlchemy calls them
    checkout = listeners.f_back
    assert checkout is not None
    frame = checkout.f_back
    for _ in range(_NEAR):
        # Another event's, or another checkout's: what that calls takes this one, not the Connection further up.
        if frame is None or frame.f_code is checkout.f_code or frame.f_code.co_filename == listeners.f_code.co_filename:
            return False
        if frame.f_code in _CONNECTIONS:
            return True
        frame = frame.f_back
    return False


def _dialects(pool: Pool | None) -> set[Any]:
    """Of the engines that have this pool; mostly it is one."""
    # SQLAlchemy's own name: it knows that of an engine which has another pool by now, too.
    known = getattr(pool, "_dialect", None)
    return {known, *(engine.dialect for engine in list(registry.engines) if engine.pool is pool)} - {None}
