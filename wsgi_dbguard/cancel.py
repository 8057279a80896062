"""Stop a query on the server, each driver's own way. Nothing here is called by the thread that waits for the query.

PostgreSQL has a request of its own for this, sent over a second connection to the same address with a secret that the
driver keeps; PgBouncer passes it on. psycopg2's `cancel()` would stop all threads of the process while the server does
not answer, so its libpq is called past it. MySQL and MariaDB are told ``KILL QUERY`` over a second connection, opened
by the engine's own creator, so that rotating passwords (`do_connect`) and ``creator=`` work. Behind a proxy that second
connection may lead to another server, where the same number is somebody else's: so it is looked at first what runs
there under that number.

Example::

    stop = way(link, statement, began)      # in time: while the connection is certainly open
    if stop is not None:
        stop()                              # may block; the connection itself is not touched any more
"""

from __future__ import annotations

import _socket  # not `socket`: gevent replaces that class
import contextlib
import logging
import struct
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from sqlalchemy.engine import Dialect

from . import registry, sockets
from .link import Link
from .patterns import lazily
from .watchdog import Deadline

__all__ = ["prepare", "way"]

logger = logging.getLogger(__name__)

Way = Callable[[], object]

_PATIENCE = 2.0  # seconds for the second connection, where its driver takes a limit
_ALIKE = 3.0  # seconds by which the server's whole seconds and ours may differ, for one and the same query
_CANCEL_REQUEST = 80877102  # PostgreSQL's "Message Formats"
_PLACEHOLDER = lazily(r"[%?:]")


def prepare(dialect: Dialect) -> None:
    """Import what `way` will need for such connections: it may be called by the handler of a signal."""
    if getattr(dialect, "driver", "") == "psycopg2":  # of a dialect that somebody has made by hand there may be none
        with contextlib.suppress(ImportError, AttributeError, OSError):
            _libpq()


def way(link: Link, statement: str | None = None, began: float | None = None) -> Way | None:
    """What stops the query that runs on the connection of `link`; None where there is no way.

    `statement`: its text, `began`: when it was sent (`time.monotonic()`), where they are known.
    """
    connection = link.connection()
    if connection is None:
        return None
    # Not type(): tracing libraries wrap connections in proxies. A subclass of the application's is the driver's still.
    for cls in connection.__class__.__mro__:
        make = _WAYS.get(cls.__module__.partition(".")[0])
        if make is not None:
            return make(connection, link, statement, began)
    return None


# PostgreSQL


@cache
def _libpq() -> tuple[Any, Any, Callable[[int], Any]]:
    """psycopg2's libpq, once to be called with the interpreter's lock and once without; what makes a buffer for it."""
    import ctypes  # takes a millisecond, and no other driver needs it

    from psycopg2 import _psycopg

    # The symbols of a library are looked for in those that it needs as well.
    held, released = ctypes.PyDLL(_psycopg.__file__), ctypes.CDLL(_psycopg.__file__)
    held.PQgetCancel.restype = ctypes.c_void_p
    held.PQgetCancel.argtypes = [ctypes.c_void_p]
    released.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    released.PQfreeCancel.restype = None
    released.PQfreeCancel.argtypes = [ctypes.c_void_p]
    return held, released, ctypes.create_string_buffer


def _psycopg2(connection: Any, *ignored: Any) -> Way | None:
    try:
        held, released, buffer = _libpq()
    except (AttributeError, OSError):  # no such symbols: linked in another way
        return connection.cancel  # type: ignore[no-any-return]
    # A copy of the address and the secret; from here on the connection may be closed.
    request = held.PQgetCancel(connection.pgconn_ptr)
    if not request:
        return None

    def cancel() -> None:
        problem = buffer(256)  # the size that libpq asks for
        try:
            if not released.PQcancel(request, problem, len(problem)):
                raise OSError(problem.value.decode(errors="replace").strip())
        finally:
            released.PQfreeCancel(request)

    return cancel


def _psycopg(connection: Any, *ignored: Any) -> Way:
    if hasattr(connection, "cancel_safe"):  # psycopg 3.2; with a limit from libpq 17 on
        return lambda: connection.cancel_safe(timeout=_PATIENCE)
    return connection.cancel  # type: ignore[no-any-return]


def _pg8000(connection: Any, link: Link, *ignored: Any) -> Way | None:
    secret: bytes | None = connection._backend_key_data
    if secret is None or link.peer is None:
        return None
    message = struct.pack("!ii", 8 + len(secret), _CANCEL_REQUEST) + secret
    families = {2: _socket.AF_INET, 4: _socket.AF_INET6}  # by what an address consists of
    peer = link.peer
    family = families.get(len(peer), _socket.AF_INET) if isinstance(peer, tuple) else _socket.AF_UNIX

    def cancel() -> None:
        sock = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            sock.settimeout(_PATIENCE)
            sock.connect(peer)
            sock.sendall(message)
            sock.recv(1)  # the server closes when it has told its backend
        finally:
            sock.close()

    return cancel


# MySQL, MariaDB


def _mysql(connection: Any, link: Link, statement: str | None, began: float | None) -> Way | None:
    number = link.server_id
    if number is None:
        return None

    def cancel() -> None:
        opened = _second_connection(link)
        fd = sockets.fileno(opened)
        try:
            with Deadline(_PATIENCE, lambda: sockets.cut(fd)):
                running = _running(opened, number)
                if running is None:
                    return  # it has ended
                if not _is_ours(running, link, statement, began):
                    raise LookupError(f"what runs under number {number} is not known to be this query: a proxy?")
                opened.cursor().execute(f"KILL QUERY {number}")
        finally:
            with contextlib.suppress(Exception):
                opened.close()

    return cancel


def _second_connection(link: Link) -> Any:
    """A connection of its own to the server of `link`, past the pool and past the breaker.

    Raises:
        LookupError: if the engine is not known.
    """
    for engine in list(registry.engines):
        if link.guard is not None and engine.dialect is link.guard.dialect:
            creator: Any = engine.pool._creator
            open_one: Any = creator.__wrapped__ if hasattr(creator, "breaker") else engine.pool._invoke_creator
            return open_one(None)
    raise LookupError("the engine of this connection is not known")


def _running(connection: Any, number: int) -> tuple[str, str, float] | None:
    """The client's host, the text and the seconds of what runs under `number`, as far as we may see it."""
    cursor = connection.cursor()
    cursor.execute(f"SELECT host, info, time FROM information_schema.processlist WHERE id = {number}")
    row = cursor.fetchone()
    cursor.close()
    if row is None:
        return None
    host, info, seconds = row.values() if isinstance(row, dict) else row
    return None if info is None else (_text(host), _text(info), float(seconds or 0))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _is_ours(running: tuple[str, str, float], link: Link, statement: str | None, began: float | None) -> bool:
    host, info, seconds = running
    if isinstance(link.local, str | bytes):  # a Unix socket: there is one server behind it
        return True
    if link.local is not None and host.rpartition(":")[2] == str(link.local[1]):
        return True
    if statement is None or began is None:
        return False
    # There is something in between, with ports of its own. Up to the first parameter the text is the one that was sent.
    start = _PLACEHOLDER.split(statement.strip(), maxsplit=1)[0][:200]
    return info.lstrip().startswith(start) and abs(time.monotonic() - began - seconds) < _ALIKE


_WAYS: dict[str, Callable[[Any, Link, str | None, float | None], Way | None]] = {
    "psycopg2": _psycopg2,
    "psycopg": _psycopg,
    "pg8000": _pg8000,
    "pymysql": _mysql,
    "MySQLdb": _mysql,
    "mariadb": _mysql,
    "mysql": _mysql,
}
