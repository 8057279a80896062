"""What the guard knows of one DBAPI connection: a `Link`, kept in its pool entry's ``info`` and in `registry.links`.

A link is made once, when its connection is opened, because some of it can only be found then: the descriptor (asking a
driver later can block, see `sockets.fileno`) and the line of code that opened it. It refers to the connection and to
its pool entry weakly: knowing a connection must not keep it open.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from . import sockets, stacks
from .process import here

if TYPE_CHECKING:
    from .config import GuardConfig
    from .deadline import Running
    from .pool import PoolGuard
    from .request import Owner
    from .rollbacks import Quiet
    from .watchdog import Deadline

__all__ = ["KEY", "SUSPECT", "UNKNOWN", "Link", "Retired", "has_quirks"]

KEY = "wsgi_dbguard"  # in ConnectionPoolEntry.info
SUSPECT = "suspect"  # it may lead to a server that has become read-only
UNKNOWN = object()
_QUIRKY = frozenset({"mariadb", "mysql", "pg8000"})  # drivers' top packages


def _nothing() -> None:
    return None


def _nothing_of(connection: Any) -> None:
    return None


def _unwatched() -> int:
    """A link that no guard has adopted yet, or whose driver does not tell its socket: each checkout asks the server."""
    return sockets.SUSPECT


def _in_memory(connection: Any) -> bool:
    """Whether this is a sqlite3 connection to a database that exists only in this process."""
    if type(connection).__module__ != "sqlite3":
        return False
    try:
        cursor = connection.cursor()
        cursor.row_factory = None
        return not cursor.execute("PRAGMA database_list").fetchone()[2]
    except Exception:  # an encrypted database answers nothing yet; it is a file
        return False


def has_quirks(connection: Any) -> bool:
    """Whether there may be something for `quirks` to mend, which is not imported where there is not."""
    return type(connection).__module__.partition(".")[0] in _QUIRKY


def _server_id(connection: Any) -> int | None:
    """The number by which MySQL or MariaDB knows this connection, as its driver was told at the beginning."""
    try:
        found = getattr(connection, "thread_id", None)
        if found is None:
            found = getattr(connection, "connection_id", None)
        return None if found is None else int(found() if callable(found) else found)
    except Exception:  # in use by another thread, or what stands for a connection in a test
        return None


class Link:
    """One DBAPI connection of a pool, from `connect` to `close`. Times are `time.monotonic()` seconds."""

    __slots__ = (
        "__weakref__",
        "baseline",
        "born",
        "changed",
        "claimed",
        "connection",
        "detached",
        "doomed",
        "entry",
        "expires",
        "fd",
        "flags",
        "guard",
        "identity",
        "in_memory",
        "lent",
        "local",
        "look",
        "opened_at",
        "opening",
        "owner",
        "peer",
        "pending",
        "pid",
        "quiet",
        "running",
        "server_id",
        "severed",
        "taken",
        "taken_at",
        "used",
        "users",
        "uses",
        "values",
    )

    def __init__(
        self,
        connection: Any,
        entry: ConnectionPoolEntry | None,
        *,
        opened_at: str = "",
        gone: Callable[[Link], None],
    ) -> None:
        self.opening: Deadline | None = None  # while it is being opened
        self.born = time.monotonic()
        self.pid = os.getpid()  # of the process that opened it
        self.claimed = bool(here[0])  # not by a child that is still to be cut off from its parent
        self.fd = sockets.fileno(connection)
        self.identity = None if self.fd is None else sockets.identity(self.fd)
        if self.fd is not None:
            sockets.close_on_exec(self.fd)
        # Now: on a socket that was cut or closed there is nothing left to ask, and mysqlclient answers no other thread
        # while a query runs.
        self.server_id = _server_id(connection)
        self.local: Any
        self.peer: Any
        self.local, self.peer = (None, None) if self.fd is None else sockets.ends(self.fd)
        self.in_memory = self.fd is None and _in_memory(connection)
        if has_quirks(connection):
            from . import quirks

            quirks.mend_streams(connection)
        self.opened_at = opened_at or stacks.render(stacks.place())
        self.entry: Callable[[], ConnectionPoolEntry | None]  # None once it was collected, or for one without a pool
        self.entry = _nothing if entry is None else weakref.ref(entry)
        self.connection: Callable[[], Any]  # the DBAPI connection, None once it was collected
        try:
            self.connection = weakref.ref(connection, lambda ref: gone(self))
        except TypeError:  # sqlite3 in C, and other drivers in C: as long as the entry lives, ask that
            if entry is not None:
                self.entry = weakref.ref(entry, lambda ref: gone(self))
            self.connection = self._by_entry
        self.detached = entry is None  # from its pool
        # What the guard of its pool adds, see PoolGuard:
        self.guard: PoolGuard | None = None
        self.look: sockets.Look = _unwatched
        self.expires = float("inf")
        self.doomed: str | None = None  # why it is not to be handed out again; or SUSPECT
        self.used = self.born  # the last checkout
        self.uses = 0  # checkouts
        self.quiet: Quiet | None = None  # since its last transaction, where the setting is on
        self.running: Running | None = None  # the statement of a request whose time in the database is limited
        self.severed = False  # its socket was cut from here
        # At this moment or before, where one connection has several (StaticPool).
        self.users: weakref.WeakSet[PoolProxiedConnection] = weakref.WeakSet()
        # Of the last checkout, see `leaks`:
        self.owner: Owner | None = None  # the request that took it
        self.lent = False  # in a thread of the application's own
        self.taken: Callable[[], PoolProxiedConnection | None] = _nothing  # what the owner took it as
        self.taken_at: stacks.Trace | None = None
        # What a request may change and leave, see `flags` and `state`:
        self.flags: Callable[[Any], object] = _nothing_of
        self.baseline: object = UNKNOWN  # its flags at the first checkout
        self.values: dict[str, Any] = {}  # of variables, at the first checkout
        self.pending: dict[str, bool] = {}  # changed, or put right again, in a transaction that has not ended
        self.changed: set[str] | None = None  # since the checkout before; not None: worth a closer look

    def _by_entry(self) -> Any:
        entry = self.entry()
        return None if entry is None else entry.dbapi_connection

    def tune(self, config: GuardConfig) -> None:
        """Set the keepalive and the timeout of its socket, if it has one."""
        if self.fd is not None:
            sockets.tune(self.fd, keepalive=config.keepalive, user_timeout=config.user_timeout)

    def happened(self) -> int:
        """Which events of `sockets.DEAD` and `sockets.SUSPECT` have happened on it; 0 for none."""
        if not self.look():
            return 0
        return sockets.SUSPECT if self.fd is None else sockets.happened(self.fd)

    def cut(self) -> None:
        """Shut the connection down, for whoever is blocked in it; nothing where its descriptor is another's by now."""
        # A driver that has just met an error has closed the descriptor.
        if self.fd is not None and sockets.identity(self.fd) == self.identity:
            self.severed = True
            sockets.cut(self.fd)

    @property
    def in_use(self) -> bool:
        """Checked out, or detached from its pool: somebody may hold it."""
        entry = self.entry()
        return entry is None or entry.in_use or entry.dbapi_connection is not self.connection()

    def __repr__(self) -> str:
        age = time.monotonic() - self.born
        return f"<Link fd={self.fd} age={age:.1f}s uses={self.uses} opened at {self.opened_at}>"


class Retired:
    """Stands in a pool entry for a connection that was closed while it lay idle, until the entry's next checkout.

    There the guard replaces it. A listener that comes before the guard and wants to use it does so too, by the error
    that it gets; one that only looks finds what the closed connection has to show.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def __getattr__(self, name: str) -> Any:
        if name in ("cursor", "commit", "execute", "ping"):
            raise exc.DisconnectionError("closed while it lay idle")
        return getattr(self.connection, name)

    def rollback(self) -> None:
        """Nothing is left to roll back."""

    def close(self) -> None:
        """It is closed."""
