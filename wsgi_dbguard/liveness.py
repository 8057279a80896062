"""Is this connection alive? A real ping with a deadline, the second tier of the check; the first is one `poll`.

The socket tells for certain that a connection is dead (`sockets.DEAD`), at no cost. It cannot tell that a connection is
alive when something arrived unasked, when it has been idle long enough for a firewall to forget it, or behind a proxy
that keeps the socket and has lost the server. Then the server is asked, and an answer that takes longer than `timeout`
seconds is a no, on every driver.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy.engine.interfaces import Dialect

from .link import Link
from .watchdog import Deadline

__all__ = ["ping", "read_only"]

logger = logging.getLogger(__name__)


def ping(dialect: Dialect, connection: Any, link: Link, timeout: float) -> bool:
    """Whether the server answers on this connection within `timeout` seconds, asked the dialect's own way.

    A connection on which even that fails is of no use to anybody, whatever the error says, so there is no error to
    raise. An interrupt (KeyboardInterrupt, a greenlet's timeout) is the caller's and passes through.
    """
    deadline = Deadline(timeout, link.cut)
    try:
        with deadline:
            alive = bool(dialect.do_ping(connection))
    except Exception as error:
        logger.debug("ping failed: %s", error)
        return False
    return alive and not deadline.expired


# True in the first column of a row: no write will be taken. PostgreSQL: a standby, or read-only by default (how managed
# servers answer a full disk), unless the application asked for that itself. MySQL and MariaDB: a replica, or a primary
# that was demoted.
_READ_ONLY = {
    "postgresql": "SELECT pg_is_in_recovery() OR EXISTS (SELECT FROM pg_settings WHERE setting = 'on'"
    " AND name = 'default_transaction_read_only' AND source NOT IN ('client', 'session'))",
    "mysql": "SELECT @@global.read_only OR @@global.innodb_read_only",
    "mariadb": "SELECT @@global.read_only OR @@global.innodb_read_only",
}


def read_only(dialect: Dialect, connection: Any, link: Link, timeout: float) -> bool:
    """Whether the server at the other end takes no writes, asked outside a transaction; False if it cannot be told."""
    question = _READ_ONLY.get(dialect.name)
    if question is None:
        return False
    deadline = Deadline(timeout, link.cut)
    try:
        with deadline:
            cursor = connection.cursor()
            cursor.execute(question)
            row = cursor.fetchone()
            cursor.close()
            connection.rollback()
    except Exception as error:
        logger.debug("could not ask whether the server is read-only: %s", error)
        return False
    return bool(row[0])
