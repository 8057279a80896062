"""The ROLLBACK at each checkin, left out where it is known to be needless: MySQL's dialects send one every time.

Needless it is where nothing was sent on the connection since the last COMMIT or ROLLBACK that the server has carried
out: after ``with engine.begin()``, after ``session.commit()`` or ``rollback()``, and where a connection was taken and
not used. A second ROLLBACK finds all as the first one left it. That nothing was sent is what the kernel says
(`written`), so no way to send a statement is overlooked; and that the kernel does count here is seen each time, by the
COMMIT or ROLLBACK itself.

The server's own flag (SERVER_STATUS_IN_TRANS), which some drivers tell, is no such proof. It is not in the server's
answer to a statement that failed: the first INSERT of a transaction that meets a duplicate key leaves a lock behind,
and a flag that is off. Nor does it know of a SET TRANSACTION that waits for its transaction. So after a SELECT, or a
ping, there is a ROLLBACK as ever; where connections are in autocommit SQLAlchemy has ``skip_autocommit_rollback``.

A connection on which nothing is ever sent is forgotten by firewalls: after `ping_after` seconds a ROLLBACK is sent all
the same. And one that was taken and given back without a word has not been used: the next checkout goes by the time
since something was sent on it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import PoolProxiedConnection

from . import sockets, transactions
from .link import KEY, Link
from .pool import PoolGuard
from .written import counter

__all__ = ["skip_idle"]

logger = logging.getLogger(__name__)

_DIALECTS = ("mysql", "mariadb")  # drivers of PostgreSQL send none outside a transaction
_watched: weakref.WeakSet[Dialect] = weakref.WeakSet()  # of an engine and its execution_options() copies
_told: weakref.WeakSet[PoolGuard] = weakref.WeakSet()  # that it cannot be done


class Quiet:
    """What was written to the socket of one connection when its last transaction had ended, and when that was."""

    __slots__ = ("count", "since", "written")

    def __init__(self, link: Link) -> None:
        self.count: Callable[[], int | None] = _uncounted
        if link.fd is not None and link.guard is not None and not link.guard.shares:
            self.count = counter(link.fd) or _uncounted
        self.written: int | None = None
        self.since = 0.0

    def lasts(self) -> bool:
        """Whether nothing was written since."""
        return self.written is not None and self.written == self.count()


def _uncounted() -> None:
    return None


def skip_idle(engine: Engine) -> None:
    """From now on leave out the needless ROLLBACK of `engine`'s connections, as long as the guard of their pool says so
    (setting ``skip_idle_rollback``). At the second call, nothing; nor with another database than MySQL or MariaDB.
    """
    dialect = engine.dialect
    if dialect.name not in _DIALECTS or dialect.is_async or dialect in _watched:
        return
    _watched.add(dialect)
    do_commit, do_rollback = dialect.do_commit, dialect.do_rollback

    def commit(connection: PoolProxiedConnection) -> None:
        link = _link(connection)
        if link is None:
            do_commit(connection)
        else:
            _end(link, do_commit, connection)

    def rollback(connection: PoolProxiedConnection) -> None:
        link = _link(connection)
        if link is None:
            do_rollback(connection)
        elif _is_needless(link):
            transactions.on_rollback(connection)  # where it is not told by `do_rollback`, or has been already
            if link.quiet is not None and link.quiet.since < link.used:  # it was taken, and nothing was sent on it
                link.changed = link.changed or set()  # so that the next checkout has a closer look
        else:
            _end(link, do_rollback, connection)

    dialect.do_commit = commit  # type: ignore[method-assign, assignment]
    dialect.do_rollback = rollback  # type: ignore[method-assign, assignment]


def _link(connection: PoolProxiedConnection) -> Link | None:
    try:
        link: Link | None = connection.info.get(KEY)
    except NotImplementedError:  # the dialect's own questions on the very first connection have no pool entry
        return None
    if link is None or link.guard is None or not link.guard.config.skip_idle_rollback:
        return None
    return link


def _is_needless(link: Link) -> bool:
    quiet = link.quiet
    if quiet is None or link.fd is None or link.guard is None:
        return False
    return (
        monotonic() - quiet.since < link.guard.config.ping_after
        and quiet.lasts()
        # Of this socket, and not of one in its place, to which the driver has connected anew.
        and sockets.identity(link.fd) == link.identity
        and not link.look()  # nothing has come either: an answer that nobody has read, or the server's farewell
    )


def _end(link: Link, send: Callable[[Any], None], connection: PoolProxiedConnection) -> None:
    """A COMMIT or ROLLBACK that is sent; when it was carried out the connection is quiet."""
    quiet = link.quiet
    if quiet is None:
        quiet = link.quiet = Quiet(link)
    quiet.written = None
    before = quiet.count()
    send(connection)
    after = quiet.count()
    if before is not None and after is not None and after > before:
        quiet.written, quiet.since = after, monotonic()
    # No count, or zero after all that has been said to open a connection. One that has not grown: nothing was sent, by
    # SQLAlchemy's own `skip_autocommit_rollback` or on a connection that was cut.
    elif not after and (link.fd is None or sockets.identity(link.fd) == link.identity):
        _tell(link)


def _tell(link: Link) -> None:
    if link.guard is not None and link.guard not in _told:
        _told.add(link.guard)
        logger.warning(
            "%s: skip_idle_rollback has no effect: it takes TCP (not a Unix socket) on Linux 4.19 or newer, a driver "
            "that tells its socket, and a pool whose connections have one user at a time",
            link.guard.name,
        )  # fmt: skip
