"""Modes that a driver keeps on its connection (autocommit, isolation level, read only): seen, and put right again.

SQLAlchemy puts back what was set through its execution options. What an application sets on the driver's connection
itself stays for whoever gets it next. The drivers tell these modes without asking the server, so they are compared with
what they were at the connection's first checkout. psycopg2, psycopg and pg8000 put them right without a round trip,
MySQL's drivers with one.

Example::

    read = reader(dbapi_connection)
    before = read(dbapi_connection)
    dbapi_connection.autocommit = True
    if read(dbapi_connection) != before:
        restore(dbapi_connection, before)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from operator import attrgetter, methodcaller
from typing import Any

from .link import UNKNOWN, Link
from .watchdog import Deadline

__all__ = ["reader", "restore", "settle"]

logger = logging.getLogger(__name__)

# Attributes, by the driver's top package. mysql-connector would ask the server.
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "psycopg2": ("autocommit", "isolation_level", "readonly", "deferrable"),
    "psycopg": ("autocommit", "isolation_level", "read_only", "deferrable"),
    "pg8000": ("autocommit",),
    "mariadb": ("autocommit",),
}
# Where `autocommit` is a method: it sends SET.
_METHODS = ("pymysql", "MySQLdb")
_BROKEN = object()


def _or_broken(read: Callable[[Any], object]) -> Callable[[Any], object]:
    """For drivers that raise when a connection was closed: it is as good as changed."""

    def told(connection: Any) -> object:
        try:
            return read(connection)
        except Exception:
            return _BROKEN

    return told


_READERS: dict[str, Callable[[Any], object]] = {
    "psycopg2": attrgetter(*_ATTRIBUTES["psycopg2"]),
    "psycopg": attrgetter(*_ATTRIBUTES["psycopg"]),
    "pg8000": attrgetter("autocommit"),
    "mariadb": _or_broken(attrgetter("autocommit")),
    "pymysql": methodcaller("get_autocommit"),
    "MySQLdb": _or_broken(methodcaller("get_autocommit")),
}


def _package(connection: Any) -> str:
    # Not type(): tracing libraries wrap connections in proxies that answer for what they wrap.
    return str(connection.__class__.__module__.partition(".")[0])


def reader(connection: Any) -> Callable[[Any], object]:
    """What tells the modes of such a connection, as one value to compare; always None for a driver not known here."""
    return _READERS.get(_package(connection), _nothing)


def settle(connection: Any, link: Link) -> bool:
    """At a checkout: put the modes back to what they were; at the first one, remember them. False if it cannot be."""
    if link.baseline is UNKNOWN:
        link.baseline = link.flags(connection)
        return True
    assert link.guard is not None  # which calls this
    deadline = Deadline(link.guard.config.ping_timeout, link.cut)
    try:
        with deadline:
            restore(connection, link.baseline)
    except Exception as error:  # such as in a transaction, where a pool does not reset
        logger.debug("could not put right what was set on %s: %s", link, error)
        return False
    return not deadline.expired


def restore(connection: Any, flags: Any) -> None:
    """Put the modes back to what `reader` told before. The driver's errors pass through."""
    package = _package(connection)
    if package in _METHODS:
        connection.autocommit(flags)
        return
    names = _ATTRIBUTES.get(package, ())
    for name, value in zip(names, flags if len(names) > 1 else (flags,), strict=True):
        if getattr(connection, name) != value:
            setattr(connection, name, value)


def _nothing(connection: Any) -> None:
    return None
