"""The socket under a driver's connection: finding it, watching it, tuning it, cutting it.

Everything here works on a file descriptor, below the driver: no byte is read or written, no driver method is called but
the one that tells the descriptor. That is what makes it cheap (one system call), the same for every driver, and safe at
any time: after a fork, or while another thread is in the middle of a query.

Example::

    fd = fileno(dbapi_connection)
    if fd is not None:
        tune(fd, keepalive=(15, 5, 3), user_timeout=30.0)
        if watch(fd)(0):            # one poll(2); [] while nothing happened
            ...
"""

from __future__ import annotations

import _socket  # not `socket`: gevent replaces that class by one that makes the descriptor non-blocking
import contextlib
import functools
import os
import select
import struct
from collections.abc import Callable
from operator import attrgetter, methodcaller
from typing import Any

from . import libc
from .unpatched import original

__all__ = [
    "DEAD",
    "SUSPECT",
    "close_on_exec",
    "cut",
    "dead_end",
    "ends",
    "fileno",
    "happened",
    "identity",
    "is_tcp",
    "replace",
    "tune",
    "watch",
]

# The peer is gone for certain. POLLRDHUP is Linux' own; elsewhere a FIN shows as POLLIN and gets a ping.
_RDHUP: int = getattr(select, "POLLRDHUP", 0)
DEAD = _RDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
# Something arrived unasked: a notification, a TLS session ticket, or the last words of a server that is closing.
SUSPECT = select.POLLIN | select.POLLPRI
_EVENTS = SUSPECT | _RDHUP

_POLLFD = struct.Struct("=ihh")  # poll(2)

Look = Callable[[], int]
Identity = tuple[int, int]


# Where a driver keeps its socket when the connection has no fileno(), by the driver's top package.
_ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "pymysql": attrgetter("_sock"),
    "pg8000": attrgetter("_usock"),
    "mysql": attrgetter("_socket.sock"),  # mysql-connector in Python; its C extension does not tell
    "mariadb": methodcaller("_get_socket"),  # the number; .socket would be an object that closes it when collected
}


def fileno(connection: Any) -> int | None:
    """The descriptor of a DBAPI connection's socket, or None where there is none (sqlite3) or it is not told.

    Call it when the connection is new: on a used one some drivers take a lock first (psycopg2), and in a forked child
    that lock may be held for ever by a thread that does not exist there.
    """
    # Not type(): tracing libraries wrap connections in proxies that answer for what they wrap. An application's own
    # subclass of a driver's connection is found by its bases.
    packages = [each.__module__.partition(".")[0] for each in connection.__class__.__mro__]
    adapter = next((_ADAPTERS[package] for package in packages if package in _ADAPTERS), None)
    try:
        holder = connection if adapter is None else adapter(connection)
        fd = holder if isinstance(holder, int) else holder.fileno()
    except Exception:  # no such attribute or method, or a driver that answers with an error of its own
        return None
    return fd if isinstance(fd, int) and fd >= 0 else None


def identity(fd: int) -> Identity | None:
    """What `fd` refers to, as (st_dev, st_ino): tells whether a descriptor's number was given to something else."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def watch(fd: int) -> Look:
    """What tells whether anything has happened on `fd`, by one system call that does not wait: 0 as long as not."""
    poll = libc.function("poll")
    if poll is None:
        return functools.partial(happened, fd)
    # Optimization: made once, a partial, and numbers as they are (libffi widens them): this runs at each checkout.
    return functools.partial(poll, libc.reference(_POLLFD.pack(fd, _EVENTS, 0)), 1, 0)


def happened(fd: int) -> int:
    """Which events of `DEAD` and `SUSPECT` have happened on `fd`; 0 for none."""
    poll = original("select", "poll")()  # gevent's would switch greenlets
    poll.register(fd, _EVENTS)
    return sum(events for _, events in poll.poll(0))


class _Borrowed:
    """The socket object for a descriptor that belongs to somebody else.

    Socket options belong to the open file description, so a duplicate of the descriptor does. Creating a socket object
    can make the description non-blocking (after `socket.setdefaulttimeout`): what it was is put back.
    """

    def __init__(self, fd: int) -> None:
        blocking = os.get_blocking(fd)
        copy = os.dup(fd)
        try:
            self._socket = _socket.socket(fileno=copy)
        except BaseException:
            os.close(copy)
            raise
        os.set_blocking(fd, blocking)

    def __enter__(self) -> _socket.socket:
        return self._socket

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def ends(fd: int) -> tuple[Any, Any]:
    """The addresses of this end and of the other one of the socket, each None where it cannot be told."""
    found: list[Any] = []
    for end in ("getsockname", "getpeername"):
        try:
            with _Borrowed(fd) as sock:
                found.append(getattr(sock, end)())
        except OSError:
            found.append(None)
    return found[0], found[1]


def is_tcp(fd: int) -> bool:
    """Whether `fd` is a TCP socket; a Unix socket has no network that could drop it."""
    try:
        with _Borrowed(fd) as sock:
            return sock.family in (_socket.AF_INET, _socket.AF_INET6)
    except OSError:
        return False


def tune(fd: int, *, keepalive: tuple[int, int, int] | None, user_timeout: float | None) -> None:
    """Set TCP keepalive (idle seconds, interval seconds, count) and TCP_USER_TIMEOUT (seconds) on a TCP socket.

    With both set, Linux gives up after `user_timeout` whatever the count says (tcp(7)). Does nothing to a socket that
    is not TCP, and skips an option that the platform has not got.
    """
    options: list[tuple[int, str, int]] = []
    if keepalive is not None:
        idle, interval, count = keepalive
        options += [
            (_socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
            (_socket.IPPROTO_TCP, "TCP_KEEPIDLE", idle),
            (_socket.IPPROTO_TCP, "TCP_KEEPINTVL", interval),
            (_socket.IPPROTO_TCP, "TCP_KEEPCNT", count),
        ]
    if user_timeout is not None:
        options.append((_socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", round(user_timeout * 1000)))
    try:
        with _Borrowed(fd) as sock:
            if sock.family in (_socket.AF_INET, _socket.AF_INET6):
                for level, name, value in options:
                    if hasattr(_socket, name):
                        sock.setsockopt(level, getattr(_socket, name), value)
    except OSError:
        pass  # closed meanwhile: the check at checkout will see it


def close_on_exec(fd: int) -> None:
    """Keep `fd` from the programs that this process starts.

    mysqlclient and mariadb do not (MariaDB Connector/C): the server would keep the connection, and its locks, after the
    end of this process for as long as one of those programs runs.
    """
    with contextlib.suppress(OSError):  # closed meanwhile
        os.set_inheritable(fd, False)


def cut(fd: int | None) -> None:
    """Shut the connection under `fd` down, for whoever is blocked in it: every driver wakes up with an error.

    The descriptor stays open, and every process that shares the connection is cut off as well: never for an inherited
    one, see `replace`. Does nothing where there is no descriptor.
    """
    if fd is None:
        return
    try:
        with _Borrowed(fd) as sock:
            sock.shutdown(_socket.SHUT_RDWR)
    except OSError:
        pass


def dead_end() -> int:
    """A descriptor that reads as end of file and refuses writes: a socket whose other end is closed.

    Not /dev/null, which takes writes: psycopg 3 would not see an error that means "disconnected".
    """
    ours, other = _socket.socketpair()
    other.close()
    return ours.detach()


def replace(fd: int, by: int) -> None:
    """Put the description of `by` in the place of `fd`'s: this process lets go of the socket, others keep it."""
    os.dup2(by, fd, inheritable=False)
