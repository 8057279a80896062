"""Every engine and every pooled connection of this process: what a fork must cut, and what "all engines" means.

Found by class-level `Pool` events (`connect`, `close`) and by SQLAlchemy's documented `Dialect.engine_created` hook,
which `create_engine` calls on every dialect. The other public way to see engines, a class-level `engine_connect`
listener, would make every statement of every engine dearer (about 3 µs: it switches SQLAlchemy's event dispatch on),
the hook costs nothing. What existed before this module was imported is found through the garbage collector, once.

Everything here refers weakly, so that knowing an engine or a connection does not keep it.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

_SQLALCHEMY_WAS_THERE = "sqlalchemy.engine" in sys.modules

from sqlalchemy import Engine, event  # noqa: E402
from sqlalchemy.engine.interfaces import Dialect  # noqa: E402
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection  # noqa: E402

from .link import KEY, Link  # noqa: E402

__all__ = [
    "engines",
    "family",
    "forget",
    "instances",
    "known_link_of",
    "link_of",
    "links",
    "on_engine",
    "pool_of",
    "standbys",
]

links: set[Link] = set()
engines: weakref.WeakKeyDictionary[Engine, None] = weakref.WeakKeyDictionary()
"""A set, in the order in which they were made: so each worker gives the same engine the same number and name."""
standbys: weakref.WeakKeyDictionary[Dialect, float] = weakref.WeakKeyDictionary()
"""Of engines whose servers are meant to refuse writes: seconds in which a connection has to be open, or another server
is taken."""
_listeners: list[Callable[[Engine], object]] = []
T = TypeVar("T")


def on_engine(listener: Callable[[Engine], object]) -> None:
    """Call `listener` with every engine of this process: now with those there are, then with each new one."""
    if listener not in _listeners:
        _listeners.append(listener)
    for engine in list(engines):
        listener(engine)


def family(cls: type[T]) -> list[type[T]]:
    """`cls` and everything below it, such as the private classes that implement a public interface."""
    return [cls, *(each for child in cls.__subclasses__() for each in family(child))]


def instances(*classes: type[T]) -> list[T]:
    """The living instances of exactly these classes, by the garbage collector: each refers to its class.

    Objects are walked, not touched, so in a forked child this copies no memory page. What `gc.freeze()` put aside is
    not walked, so it is brought back for the walk.
    """
    frozen = gc.get_freeze_count() > 0
    if frozen:
        gc.unfreeze()
    try:
        # By type(): isinstance() asks proxies such as Flask's for the class of what they stand for.
        return [each for each in gc.get_referrers(*classes) if type(each) in classes]
    finally:
        if frozen:
            gc.freeze()


def link_of(connection: Any, entry: ConnectionPoolEntry, *, opened_at: str = "") -> Link:
    """The link of a pool entry's DBAPI connection, made where there is none yet."""
    link: Link | None = entry.info.get(KEY)
    if link is None:
        link = entry.info[KEY] = Link(connection, entry, opened_at=opened_at, gone=forget)
        links.add(link)
    return link


def known_link_of(connection: Any, entry: ConnectionPoolEntry) -> Link:
    """The same where the application has cleared the entry's ``info``: a second link would not know what the first one
    does, and be closed when that one's time is up."""
    for link in list(links):
        if link.entry() is entry and link.connection() is connection:
            entry.info[KEY] = link
            return link
    return link_of(connection, entry)


def pool_of(entry: ConnectionPoolEntry | None) -> Pool | None:
    """The pool that it is an entry of."""
    # SQLAlchemy's own name for it; there is no public way, and `Engine.dispose` exchanges the engine's pool.
    return getattr(entry, "_ConnectionRecord__pool", None)


def forget(link: Link) -> None:
    """The connection of `link` was closed, or collected, or both: only the first call counts."""
    try:
        links.remove(link)
    except KeyError:
        return
    if link.guard is not None:
        link.guard.forget(link)


def _closed(connection: Any, entry: ConnectionPoolEntry) -> None:
    link = entry.info.pop(KEY, None)
    if link is not None:
        forget(link)


def _detached(connection: Any, entry: ConnectionPoolEntry) -> None:
    for link in list(links):  # not by `entry`, which another thread may have taken by now
        if link.connection() is connection:
            link.detached = True


def _created(engine: Engine) -> None:
    engines[engine] = None
    for listener in _listeners:
        listener(engine)


def _install() -> None:
    event.listen(Pool, "connect", link_of)
    event.listen(Pool, "close", _closed)
    event.listen(Pool, "detach", _detached)
    hook = Dialect.engine_created.__func__  # type: ignore[attr-defined]

    def engine_created(cls: type[Dialect], engine: Engine) -> None:
        hook(cls, engine)
        _created(engine)

    Dialect.engine_created = classmethod(engine_created)  # type: ignore[method-assign, assignment]
    if _SQLALCHEMY_WAS_THERE and _there_was_a_pool():
        _find_what_exists()


def _there_was_a_pool() -> bool:
    """Whether a pool has opened a connection in this process, or an engine was created.

    Both make SQLAlchemy note the class of the pool, in a table of events of its own (a private name). Where it is not
    known any more the answer is yes.
    """
    known = getattr(Pool.dispatch, "_empty_listener_reg", None)
    return known is None or any(cls in known for cls in family(Pool))


def _find_what_exists() -> None:
    opened_at = "an unknown place, before wsgi_dbguard was imported"
    found: list[Any] = instances(Engine, *family(ConnectionPoolEntry), *family(PoolProxiedConnection))
    for each in found:
        if isinstance(each, Engine):
            engines[each] = None
        elif each.dbapi_connection is None:
            continue
        elif isinstance(each, ConnectionPoolEntry):
            link_of(each.dbapi_connection, each, opened_at=opened_at)
        elif getattr(each, "is_detached", False):
            link = each.info[KEY] = Link(each.dbapi_connection, None, opened_at=opened_at, gone=forget)
            links.add(link)


_install()
