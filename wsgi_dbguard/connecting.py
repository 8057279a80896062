"""A limit for the opening of connections: libpq has none of its own, and a host that is gone answers nobody.

Most drivers take it as ``connect_timeout``, in whole seconds (`bound`). The ones in Python have none for what the
server says once TCP is connected, and the kernel of a server that is stopped still connects: pg8000's ``timeout`` and
PyMySQL's ``read_timeout`` and ``write_timeout`` are those of every query. So they are given for the handshake, each
step of which may take that long then, and taken off before anybody has the connection (`install`). What the network
does to a handshake they let through as the socket's own error: it is made one of the driver's.

Example::

    bound("psycopg2", (), keywords, 10.0)       # keywords["connect_timeout"] is 10 then
    install(engine.dialect, lambda: 10.0)
"""

from __future__ import annotations

import functools
import logging
import math
import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.engine import Dialect

from . import failures

__all__ = ["bound", "install"]

logger = logging.getLogger(__name__)

_KEYWORD = "connect_timeout"
_LIBPQ = frozenset({"psycopg2", "psycopg"})
_DRIVERS = _LIBPQ | {"pymysql", "mysqldb", "mariadbconnector", "mysqlconnector"}  # as SQLAlchemy names them
_ELSEWHERE = (  # it may be said there
    "dsn", "service", "conninfo", "read_default_file", "default_file", "connection_timeout", "option_files",
)  # fmt: skip


def bound(driver: str, args: Sequence[Any], keywords: dict[str, Any], seconds: float) -> None:
    """Put the limit into the arguments of a `driver`'s ``connect()``, unless the application has one there already."""
    if driver not in _DRIVERS or args or any(name in keywords for name in (_KEYWORD, *_ELSEWHERE)):
        return
    if driver in _LIBPQ and ("PGCONNECT_TIMEOUT" in os.environ or "PGSERVICE" in os.environ):
        return
    keywords[_KEYWORD] = math.ceil(seconds)


def install(dialect: Dialect, seconds: Callable[[], float | None]) -> None:
    """Limit the handshake of a driver that would wait for ever; what the application says of a timeout stays.

    Around `Dialect.connect`, after all listeners to ``do_connect``: one that returns a connection of its own has made
    it in its own way.
    """
    driver = getattr(dialect, "driver", "")
    if driver not in _TIMEOUTS:
        return
    names, take_off = _TIMEOUTS[driver]
    connect = dialect.connect

    @functools.wraps(connect)
    def limited(*args: Any, **keywords: Any) -> Any:
        nonlocal names
        limit = seconds()
        ours = [] if limit is None or args else [name for name in names if name not in keywords]
        try:
            connection = connect(*args, **keywords, **dict.fromkeys(ours, limit))
        except Exception as error:
            _close_socket(error)
            # SQLAlchemy knows only the driver's own errors, and so does an application.
            if isinstance(error, TimeoutError):
                problem = f"connection timed out: no answer for {limit:g} s" if ours else "connection timed out"
            elif failures.network_failed(error):
                problem = f"connection failed: {error}"
            else:
                raise
            raise dialect.loaded_dbapi.OperationalError(problem) from error
        if not ours:
            return connection
        try:
            take_off(connection, ours)
        except AttributeError:
            logger.warning("this version of %s is not known: its handshake is not limited", driver)
            names = ()
            connection.close()
            return connect(**keywords)
        return connection

    dialect.connect = limited  # type: ignore[method-assign]


def _close_socket(error: Exception) -> None:
    """pg8000 leaves it open, for as long as the error lives: its frames have the socket, or the file made of it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        sock = frame.f_locals.get("sock")
        if sock is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "pg8000":
            with suppress(Exception):
                sock.close()


def _pg8000(connection: Any, names: Sequence[str]) -> None:
    connection._usock.settimeout(None)


def _pymysql(connection: Any, names: Sequence[str]) -> None:
    for name in names:
        getattr(connection, f"_{name}")
        setattr(connection, f"_{name}", None)
    if connection._sock is not None:  # with defer_connect there is none yet
        connection._sock.settimeout(connection._read_timeout)
        if hasattr(connection, "_current_timeout"):  # since PyMySQL 1.2, which sets it only when it changes
            connection._current_timeout = connection._read_timeout


_TIMEOUTS: dict[str, tuple[tuple[str, ...], Callable[[Any, Sequence[str]], None]]] = {
    "pg8000": (("timeout",), _pg8000),
    "pymysql": (("read_timeout", "write_timeout"), _pymysql),
}
