"""A limit for the opening of connections: libpq has none of its own, and a host that is gone answers nobody.

Drivers take it as ``connect_timeout``, in whole seconds. pg8000 cannot be told: its ``timeout`` is that of every query.
PyMySQL limits the TCP connection only, not what the server says after it.

Example::

    bound("psycopg2", (), keywords, 10.0)       # keywords["connect_timeout"] is 10 then
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

__all__ = ["bound"]

_KEYWORD = "connect_timeout"
_LIBPQ = frozenset({"psycopg2", "psycopg"})
_DRIVERS = _LIBPQ | {"pymysql", "mysqldb", "mariadbconnector"}  # as SQLAlchemy names them
_ELSEWHERE = ("dsn", "service", "conninfo", "read_default_file", "default_file")  # it may be said there


def bound(driver: str, args: Sequence[Any], keywords: dict[str, Any], seconds: float) -> None:
    """Put the limit into the arguments of a `driver`'s ``connect()``, unless the application has one there already."""
    if driver not in _DRIVERS or args or any(name in keywords for name in (_KEYWORD, *_ELSEWHERE)):
        return
    if driver in _LIBPQ and ("PGCONNECT_TIMEOUT" in os.environ or "PGSERVICE" in os.environ):
        return
    keywords[_KEYWORD] = math.ceil(seconds)
