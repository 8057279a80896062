"""What is done at each checkout: is the connection that is about to be handed out alive?

One listener on the class `Pool`, in front of all others. A listener of the application's own, on the class or on its
engine, may use the connection, and is not to meet a dead one; and whatever is on the class comes before all that is on
an engine. So it is called for the pools of this process that no guard looks after, too, and leaves them alone.

There is no listener at checkin: "idle" counts from the last checkout. That saves one event for each use, and costs a
ping after a use longer than ping_after, a reconnect after one longer than idle_timeout.
"""

from __future__ import annotations

import weakref
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection

from . import breaker, flags, registry
from .link import KEY, Link
from .process import here
from .request import Request, current

if TYPE_CHECKING:
    from .pool import PoolGuard

__all__ = ["check", "listen"]

current_request = current.get


def listen() -> None:
    """From now on `check` is called at each checkout. At the second call, nothing."""
    if not event.contains(Pool, "checkout", check):
        event.listen(Pool, "checkout", check, insert=True)


def check(connection: Any, entry: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
    """A pool is handing out `connection`, of its `entry`, as `proxy`.

    Raises:
        sqlalchemy.exc.DisconnectionError: if it must not be used; SQLAlchemy then replaces it and asks again.
    """
    # The hot path: each line is paid at every checkout, see tests/benchmarks/checkouts.py.
    try:
        link: Link = entry.info[KEY]
    except KeyError:  # the application has cleared it
        link = registry.link_of(connection, entry)
    # Its pool may be guarded since it was opened, or not at all.
    guard = link.guard or breaker.guard_of(registry.pool_of(entry))
    if guard is None:
        return
    request = current_request()
    if guard.shares_one and _has_others(guard, link, proxy):
        _join(link, request)
        return
    now = monotonic()
    if (
        link.poll(0)
        or link.doomed is not None
        or now - link.used > guard.attention
        or now > link.expires
        or link.changed is not None
        # A request has made sure of its process when it began.
        or (request is None and not here[0])
    ):
        guard.examine(connection, entry, link)
    if request is None:
        link.owner = None
    else:
        if request.heals and link.flags(connection) != link.baseline and not flags.settle(connection, link):
            raise guard.replace("changed", link)
        request.checkouts += 1
        # In this order: a former owner that is just ending reads them in the other one, see `leaks`.
        if link.owner is not request.owner:
            link.owner = request.owner
            request.links.append(link)
        link.taken = weakref.ref(proxy)
        link.lent = get_ident() != request.thread
        link.taken_at = request.trace() if request.trace is not None else None
    link.used = now
    link.uses += 1


def _has_others(guard: PoolGuard, link: Link, proxy: PoolProxiedConnection) -> bool:
    """StaticPool hands one connection to many at once: a second user must not ping, or replace, the first one's."""
    # Who has it is asked of the users: of several, SQLAlchemy reports one checkin only.
    with guard.lock:
        others = any(user.is_valid for user in link.users if user is not proxy)
        link.users.add(proxy)
    return others


def _join(link: Link, request: Request | None) -> None:
    link.used = monotonic()
    link.uses += 1
    if request is not None:
        request.checkouts += 1
        if link.owner is not request.owner:
            link.owner = request.owner
            request.links.append(link)
