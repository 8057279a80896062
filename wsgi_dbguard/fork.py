"""After a fork: no connection, pool, session or transaction of the parent is usable in the child.

`after_fork` runs in every forked child: through `os.register_at_fork` where Python sees the fork (gunicorn,
multiprocessing, Celery), through the uWSGI hook, and as the last net from the checks at request start and at checkout
(`process`). For each connection that the parent had open, whoever held it:

1. its descriptor is replaced by a dead end (`sockets.replace`), if it still is what was opened: from here on nothing
   the child does, down to its interpreter's exit, can put a byte on the parent's wire, encrypted or not;
2. the DBAPI object is kept for ever, so that no destructor runs, and its pool entry is emptied;
3. the SQLAlchemy `Connection` objects on it are invalidated: a Session that was in a transaction says so
   (PendingRollbackError) until it is rolled back, then works, by SQLAlchemy's own rules; raw connections are closed;
4. every engine gets a fresh pool (``dispose(close=False)``), but for a `QueuePool` that nothing was checked out of: its
   entries are put aside, to be kept for ever as well.

What the parent's other threads keep in thread-local storage is let go of in the child before any handler runs there:
a ``raw_connection()`` would be rolled back on the parent's wire. So the thread that forks holds these meanwhile.

No driver method is called: with another thread in the middle of a query at the fork, drivers' locks are held for ever
in the child, and ``close()`` or ``rollback()`` would hang. The parent never notices any of it.

SQLite databases in memory belong to the child as much as to the parent and are left alone. Connections of engines that
are not SQLAlchemy's are not known here. At-fork handlers run in the order of registration: one of yours that closes
connections in the child must be registered after this package is imported.
"""

from __future__ import annotations

import _frozen_importlib
import _socket
import _thread
import contextlib
import importlib
import logging
import mmap
import os
import sys
import warnings
from collections.abc import Callable, Container, Iterable
from types import FrameType
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.pool import Pool, PoolProxiedConnection, QueuePool

from . import events, process, registry, sockets, tally, watchdog
from .errors import ForkWarning
from .link import KEY, Link
from .process import here
from .unpatched import original

__all__ = ["after_fork", "on_fork", "pid"]

logger = logging.getLogger(__name__)

pid = os.getpid()  # of the process that everything in this package belongs to
_turns: dict[int, Any] = {}  # by pid: a lock that some thread of another process may hold is never asked for
_graveyard: list[object] = []  # the parent's DBAPI connections, and the queues of its pools
# Kept for ever: the interpreter's exit collects what modules refer to, so that is not enough.
with contextlib.suppress(ImportError, AttributeError):  # only CPython counts references
    import _ctypes  # what ctypes is made of: that itself takes a millisecond to import

    _ctypes.Py_INCREF(_graveyard)
_told = mmap.mmap(-1, 1)  # shared by all children of this process: is the warning out?
_SUBPROCESS = frozenset({"subprocess", "gevent.subprocess"})
_callbacks: list[Callable[[], object]] = []
_held: dict[int, _Held] = {}  # by thread: what must not be collected while it forks


def on_fork(callback: Callable[[], object]) -> None:
    """Call `callback` in each forked child, when the parent's connections are cut; to drop state of the parent."""
    _callbacks.append(callback)


def after_fork() -> None:
    """Cut this process off from every database connection of its parent. See the module's page.

    Call it in a child that a server forked without Python seeing it. Idempotent: in a process that has not forked since
    the last call it does nothing, at the price of a look at one byte. Calls no driver, never raises.
    """
    if here[0]:
        return
    # After a fork that Python did not see, two threads may come here with their first requests: the second one waits.
    with _turns.setdefault(os.getpid(), original("_thread", "RLock")()):
        if not here[0]:
            _attempt(_cut_off)


def _attempt(step: Callable[..., object], *args: Any, **kwargs: Any) -> bool:
    """Each step is worth doing when another one failed: a user's event listener may raise in any of them.

    Whether it did not.
    """
    try:
        step(*args, **kwargs)
    except Exception:
        logger.exception("after_fork: %s failed in process %d", getattr(step, "__qualname__", step), os.getpid())
        return False
    return True


def _cut_off(held: _Held | None = None, *, alone: bool = False) -> None:
    """`alone`: no other thread of this process has run since the fork, nor opened anything."""
    global pid, _told
    parent, child = pid, os.getpid()
    inherited = [link for link in list(registry.links) if _is_inherited(link, child)]
    _sever(inherited, held)  # before all that may fail
    registry.links.difference_update(inherited)
    engines = [engine for each in registry.engines.keyrefs() if (engine := each()) is not None]
    pools = {id(engine.pool): engine.pool for engine in engines}
    renewed = {number for number, pool in pools.items() if alone and not registry.links and _renew(pool)}
    in_use = _empty(inherited, pools, renewed)
    for callback in (watchdog.reset_after_fork, tally.reset, events.reset, *_callbacks):
        _attempt(callback)
    for number, pool in pools.items():
        if number not in renewed:
            _attempt(_free_locks, pool)
    if in_use:
        _attempt(_let_go, child)
    # From here on a checkout is safe: by another thread, or by a user's listener in the next lines.
    pid = child
    process.claim()
    for link in list(registry.links):
        link.claimed = True
    for engine in engines:
        if id(engine.pool) not in renewed and not _in_memory(engine):
            _attempt(_first_again, engine.pool)
            _attempt(engine.dispose, close=False)
    # Told with the first event of a pool: a child that needs no connection is not to write anything.
    tally.counts["severed", ""] += len(inherited)
    if inherited:
        events.note(f"{len(inherited)} connection(s) of the parent process were cut off")
    told, _told = _told, mmap.mmap(-1, 1)
    if inherited and not told[0]:
        told[0] = 1
        _attempt(_tell, inherited, parent)


def _is_inherited(link: Link | None, child: int) -> bool:
    # The pid alone would not do: in a PID namespace of its own a child may have that of its parent.
    return link is not None and (link.claimed or link.pid != child) and not link.in_memory


def _sever(links: Iterable[Link], held: _Held | None) -> None:
    """Put a dead end under each connection, and bury it.

    Optimization: those that are `held` are buried all together. To refer to one is to copy the page that it is on.
    """
    end = None
    buried: set[Link] = set()
    if held is not None:
        buried = held.links
        _graveyard.append(held.connections)
    for link in links:
        try:
            if link.fd is not None and link.identity == sockets.identity(link.fd):
                end = _dead_end(link.fd) if end is None else end
                if end != link.fd:
                    sockets.replace(link.fd, by=end)
        except OSError:
            logger.exception("after_fork: could not replace descriptor %s in process %d", link.fd, os.getpid())
        if link not in buried:
            _graveyard.append(link.connection())
    if end is not None and end not in [link.fd for link in links]:
        os.close(end)


def _empty(links: list[Link], pools: dict[int, Pool], renewed: Container[int] = ()) -> bool:
    """Have their pool entries connect anew at the next checkout. Whether somebody may hold one of the connections.

    Those of `renewed` pools lie in the graveyard, and nobody had one. The pools of the others are added to `pools`,
    which has them by id: the class of one may be a user's, without a hash.
    """
    in_use = False
    for link in links:
        entry = link.entry()
        if not link.detached and id(registry.pool_of(entry)) in renewed:
            continue
        if entry is None or entry.dbapi_connection is not link.connection():  # detached
            in_use = True
            continue
        in_use = in_use or entry.in_use
        entry.dbapi_connection = None  # type: ignore[misc]
        pool = registry.pool_of(entry)
        if pool is not None:
            pools[id(pool)] = pool
    return in_use


def _dead_end(fd: int) -> int:
    try:
        return sockets.dead_end()
    except OSError:  # no descriptor is left: the first connection gives its own, for a socket that leads nowhere
        os.close(fd)
        return _socket.socket(_socket.AF_UNIX).detach()


def _let_go(child: int) -> None:
    """Take the connections away from whoever holds them, and free the locks of pools that no engine has any more.

    Nobody has an idle one, and to look through all objects for who has takes a while.
    """
    found: list[Any] = registry.instances(
        *registry.family(Connection), *registry.family(PoolProxiedConnection), *registry.family(Pool)
    )
    for each in found:
        if isinstance(each, Pool):
            _attempt(_free_locks, each)
    for each in found:
        if isinstance(each, Connection):
            _attempt(_invalidate, each, child)
    # After the Connections, which are invalidated by way of these.
    for each in found:
        if isinstance(each, PoolProxiedConnection):
            _attempt(_close, each, child)


def _free_locks(pool: object, depth: int = 2) -> None:
    """Make the locks in and under `pool` anew: a thread of the parent may have held one.

    The parent's open Connections give their entries back to this pool, before or after it is replaced.
    """
    for value in list(getattr(pool, "__dict__", {}).values()):
        if hasattr(value, "_at_fork_reinit"):  # what threading itself calls on its locks in a child
            value._at_fork_reinit()
        elif depth > 1 and type(value).__module__.startswith("sqlalchemy.util"):
            _free_locks(value, depth - 1)


def _first_again(pool: Pool) -> None:
    """Where another thread was opening the engine's first connection: have the child's first one be taken for it.

    There the dialect learns of its server, by a listener that SQLAlchemy calls once, and has called (private names).
    """
    listeners: Any = pool.dispatch.connect
    mutex = getattr(listeners, "_exec_once_mutex", None)  # held while it is called
    if mutex is None or not getattr(mutex, "locked", bool)():
        return
    for each in listeners:
        closure = getattr(each, "__closure__", None) or ()
        cells = dict(zip(each.__code__.co_freevars, closure, strict=True)) if closure else {}
        if {"fn", "once"} <= cells.keys():
            listener, left = cells["fn"].cell_contents, cells["once"].cell_contents
            if left == [] and listener.__module__.startswith("sqlalchemy."):
                left.append(listener)


def _renew(pool: Pool) -> bool:
    """Make it as good as a new one, where its entries lie there all together; whether it is now. In a process `alone`.

    Not so where a thread of the parent has one, is opening one, or has a lock: its place would be lost. By SQLAlchemy's
    private names; nor where one of them is no more.
    """
    if type(pool) is not QueuePool:
        return False
    queue: Any = pool._pool
    try:
        mutex, entries = queue.mutex, queue.queue
        waiters = queue.not_empty._waiters or queue.not_full._waiters
        full = len(entries) == queue.maxsize + pool._overflow
        if waiters or not full or pool._overflow_lock.locked() or not mutex.acquire(blocking=False):
            return False
    except AttributeError:
        return False
    try:
        if entries:
            pool._overflow = -queue.maxsize
            _graveyard.append(entries)
            queue.queue = type(entries)()
    finally:
        mutex.release()
    return True


def _link(proxied: PoolProxiedConnection) -> Link | None:
    try:
        return proxied.info.get(KEY)
    except NotImplementedError:  # what SQLAlchemy gave to a dialect that was being initialized, in another thread
        return None


def _invalidate(connection: Connection, child: int) -> None:
    try:
        if connection.closed or connection.invalidated or not _is_inherited(_link(connection.connection), child):
            return
    except AttributeError:  # in its constructor: this is the last net, and its own checkout has come here
        return
    try:
        connection.invalidate()
    finally:
        # Before SQLAlchemy 2.1 a listener that raises at checkin stops it half-way.
        if not connection.invalidated:
            connection.invalidate()


def _close(proxied: PoolProxiedConnection, child: int) -> None:
    """What `proxied.invalidate()` comes to, but for its checkin: in the last net, it is being checked out right now."""
    if proxied.dbapi_connection is not None and _is_inherited(_link(proxied), child):
        _graveyard.append(proxied.dbapi_connection)
        proxied.dbapi_connection = None  # type: ignore[misc]


def _in_memory(engine: Engine) -> bool:
    if engine.dialect.name != "sqlite":
        return False
    database = engine.url.database or ":memory:"
    return ":memory:" in database or "mode=memory" in database or engine.url.query.get("mode") == "memory"


def _tell(links: list[Link], parent: int) -> None:
    places = sorted({link.opened_at for link in links})
    message = (
        f"{len(links)} database connection(s) were open when process {parent} forked process {os.getpid()}. They were "
        "cut off in the child and stay idle in the parent: do not open connections before forking, or dispose the "
        f"engine at the end of the import. Opened at: {'; '.join(places[:5])}"
    )
    logger.warning(message)
    with contextlib.suppress(ForkWarning):  # warnings may be errors here, but there is nobody to raise it to
        # Of the line that forked: by way of _attempt, _cut_off, _attempt and after_fork or _in_child.
        warnings.warn(message, ForkWarning, stacklevel=6)


class _Held:
    """What other threads alone may have: `connections`, those of `links`, and the `proxies` that they are used by."""

    def __init__(self) -> None:
        self.connections: list[object] = []
        self.links: set[Link] = set()
        self.proxies: list[object] = []
        self.becomes_a_program = _becomes_a_program()


def _hold() -> None:
    """In the thread that is about to fork: keep what other threads alone may have, until it is cut off in the child.

    Connections and Sessions need no more than this: only the pool's proxy and the driver write when they are collected.
    What is not held is a cursor with an unbuffered result that has nobody else: those of MySQL's drivers read its rest.
    """
    _let_imports_end()
    held = _held[_thread.get_ident()] = _Held()
    for link in list(registry.links):
        if not link.in_memory:
            held.links.add(link)
            held.connections.append(link.connection())
            # SQLAlchemy's own name; what a pool entry was handed out as.
            proxied = getattr(link.entry(), "fairy_ref", None)
            if proxied is not None:
                held.proxies.append(proxied())


def _let_imports_end() -> None:
    """Of modules that are imported late: what another thread is importing would stay locked in the child, for ever."""
    for name in list(getattr(_frozen_importlib, "_module_locks", ())):  # a private name: of imports that are under way
        if name.startswith(f"{__package__}."):
            with contextlib.suppress(Exception):  # the other thread gets to know
                importlib.import_module(name)


def _hold_no_more() -> None:
    _held.pop(_thread.get_ident(), None)


def _in_child() -> None:
    held = _held.get(_thread.get_ident())
    if held.becomes_a_program if held is not None else _becomes_a_program():
        # Garbage may be collected there all the same. But nobody waits for the rest, which walks the whole heap, and
        # there is nothing to warn of. Should a preexec_fn use a database, the checkout finds what was not done.
        child = os.getpid()
        inherited = [link for link in list(registry.links) if _is_inherited(link, child)]
        _attempt(_sever, inherited, held)
        _attempt(_empty, inherited, {})
    elif not here[0]:
        _attempt(_cut_off, held, alone=True)
        _held.clear()


def _becomes_a_program() -> bool:
    """Whether `subprocess` forked, which Python sees where it was given a preexec_fn, and always under gevent."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_execute_child" and frame.f_globals.get("__name__") in _SUBPROCESS:
            return True
        frame = frame.f_back
    return False


os.register_at_fork(before=_hold, after_in_parent=_hold_no_more, after_in_child=_in_child)
