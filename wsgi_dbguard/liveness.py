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


# A row, if no write will be taken. PostgreSQL: a standby, or read-only by default (how managed servers answer a full
# disk), unless the application asked for that itself. MySQL and MariaDB: a replica, or a primary that was demoted, or
# read-only by default for new connections.
_ASK_MYSQL = (
    "SHOW GLOBAL VARIABLES WHERE Variable_name IN"
    " ('read_only', 'innodb_read_only', 'tx_read_only', 'transaction_read_only') AND Value NOT IN ('OFF', '0')"
)
_READ_ONLY = {
    "postgresql": "SELECT 1 WHERE pg_is_in_recovery() OR EXISTS (SELECT FROM pg_settings WHERE setting = 'on'"
    " AND name = 'default_transaction_read_only' AND source NOT IN ('client', 'session'))",
    "mysql": _ASK_MYSQL,
    "mariadb": _ASK_MYSQL,
}


def read_only(dialect: Dialect, connection: Any, link: Link, timeout: float, *, within: bool = False) -> bool | None:
    """Whether the server at the other end takes no writes; None if it cannot be told.

    `within`: in a transaction that goes on; else what is open is rolled back, first and last.
    """
    question = _READ_ONLY.get(dialect.name)
    if question is None:
        return None
    deadline = Deadline(timeout, link.cut)
    try:
        with deadline:
            if not within:
                connection.rollback()
            cursor = connection.cursor()
            cursor.execute(question)
            rows = cursor.fetchall()
            cursor.close()
            if not within:
                connection.rollback()
    except Exception as error:
        logger.debug("could not ask whether the server is read-only: %s", error)
        return None
    return bool(rows)
