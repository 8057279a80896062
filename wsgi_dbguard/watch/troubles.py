"""Which kind of trouble is an error? By codes where there are some, by words that libpq has instead, by a look at TCP.

A driver in C gives a text and no number for what happens while it connects. Where the text does not tell either, the
address is asked once more with a plain TCP connection, whose errors are the system's own.
"""

from __future__ import annotations

import errno
import re
import socket

from sqlalchemy.exc import DBAPIError

from wsgi_dbguard import failures
from wsgi_dbguard.errors import DatabaseUnavailable
from wsgi_dbguard.failures import Failure

from .beats import Trouble

__all__ = ["trouble_of"]

Address = tuple[str, int]

# PostgreSQL: admin_shutdown, idle_session_timeout, idle_in_transaction_session_timeout, transaction_timeout;
# MariaDB: connection killed; MySQL: disconnected because of inactivity.
_ENDED = frozenset({"57P01", "57P05", "25P03", "25P04", 1927, 4031})
_CRASHED = "57P02"
_WORDS: tuple[tuple[Trouble, re.Pattern[str]], ...] = tuple(
    (trouble, re.compile(words, re.IGNORECASE))
    for trouble, words in (
        (Trouble.CRASHED, "crash of another server process"),
        (Trouble.ENDED, "terminating connection due to|connection was killed"),
        (Trouble.REFUSED, r"connection refused|no such file or directory"),
        (Trouble.UNREACHABLE, "no route to host|network is unreachable|host is down"),
        (Trouble.UNREACHABLE, "host name|unknown host|name or service not known|name resolution|nodename nor servname"),
        (Trouble.SILENT, "timed out|timeout expired"),
        (Trouble.ANSWERED, r"\bFATAL:"),
        # PgBouncer's, as 08P01 to a client that it has let in.
        (Trouble.ANSWERED, "server login has been failing|cannot connect to server|query_wait_timeout"),
    )
)
# The system's words, which MariaDB's connector tells with a number that says nothing.
_SYSTEM = re.compile("connection reset by peer|broken pipe", re.IGNORECASE)
_NUMBERS = {
    errno.ECONNREFUSED: Trouble.REFUSED,
    errno.ENOENT: Trouble.REFUSED,  # a Unix socket's file
    errno.ENETUNREACH: Trouble.UNREACHABLE,
    errno.EHOSTUNREACH: Trouble.UNREACHABLE,
    errno.ENETDOWN: Trouble.UNREACHABLE,
    errno.EHOSTDOWN: Trouble.UNREACHABLE,
    errno.ETIMEDOUT: Trouble.SILENT,
}


def trouble_of(
    error: BaseException, *, expired: bool = False, connecting: bool = False, address: Address | None = None,
    timeout: float = 2.0,
) -> Trouble:  # fmt: skip
    """What `error` of a beat means.

    expired: the connection was cut when the time was up, so the error is our own doing. connecting: it came while a
    connection was opened; then `address` is asked for up to `timeout` seconds, where nothing else tells.
    """
    if isinstance(error, DatabaseUnavailable) and error.__cause__ is None:  # else it is what an attempt met
        return Trouble.AWAY
    if expired:
        return Trouble.SILENT
    original = (error.orig or error) if isinstance(error, DBAPIError) else error
    failure = failures.classify(error, connecting=connecting)
    if failure is Failure.READ_ONLY:
        return Trouble.READ_ONLY
    if found := _told(original):
        return found
    if failures.refused(original):
        return Trouble.ANSWERED
    if connecting and address is not None and (seen := _look(address, timeout)):
        return seen
    if connecting or failure in (Failure.DISCONNECT, Failure.UNAVAILABLE):
        return Trouble.BROKEN
    return Trouble.ANSWERED


def _told(error: BaseException) -> Trouble | None:
    code = failures.code_of(error)
    if code == _CRASHED:
        return Trouble.CRASHED
    if code in _ENDED:
        return Trouble.ENDED
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError) and (known := _system(each)):
            return known
        each = each.__cause__
    text = str(error)
    if _SYSTEM.search(text):
        return Trouble.BROKEN
    if code is not None and failures.refused(error):
        return None  # the server's words may be any
    return next((trouble for trouble, words in _WORDS if words.search(text)), None)


def _system(error: OSError) -> Trouble | None:
    if isinstance(error, socket.gaierror):
        return Trouble.UNREACHABLE
    if isinstance(error, TimeoutError):
        return Trouble.SILENT
    return _NUMBERS.get(error.errno or 0)


def _look(address: Address, timeout: float) -> Trouble | None:
    """None: TCP connects."""
    try:
        socket.create_connection(address, timeout).close()
    except OSError as error:
        return _system(error)
    return None
