"""What does a database error mean? One table, by SQLSTATE (PostgreSQL) and error number (MySQL, MariaDB).

By message only where a driver gives nothing else: psycopg2 has no SQLSTATE for a server that went away, and there
SQLAlchemy's own `is_disconnect` has read the message already. An application adds codes of its own, such as those of a
proxy::

    from wsgi_dbguard.failures import CODES, Failure
    CODES["57P06"] = Failure.DISCONNECT
    CODES[9001] = Failure.UNAVAILABLE

Codes: PostgreSQL's appendix "Error Codes"; MySQL's "Server/Client Error Message Reference"; MariaDB's "Error Codes".
"""

from __future__ import annotations

import errno
import re
from enum import StrEnum
from typing import Any

from sqlalchemy import exc

from .errors import DatabaseUnavailable
from .patterns import lazily

__all__ = ["CODES", "Failure", "classify", "code_of", "may_pass", "network_failed", "refused"]


class Failure(StrEnum):
    """What an error says about the connection and the transaction."""

    DISCONNECT = "disconnect"  # this connection is gone, or of no use any more
    UNAVAILABLE = "unavailable"  # no connection is to be had: the server is down, starting, full, or refuses us
    READ_ONLY = "read-only"  # a write where only reads are taken: a primary that was demoted, or a replica
    SERIALIZATION = "serialization"  # the transaction lost against another one: it may be tried again as a whole
    DEADLOCK = "deadlock"  # likewise
    LOCK_TIMEOUT = "lock-timeout"  # waited too long for a lock
    DEADLINE = "deadline"  # the request has spent its time in the database (setting `deadline`, no code tells it)
    STALE = "stale"  # the ORM's: a row was changed or deleted since it was read (StaleDataError, no code tells it)
    IN_DOUBT = "in-doubt"  # the transaction may have been committed or not
    OTHER = "other"  # the statement's own fault: integrity, data, syntax


_SQLSTATES: dict[Failure, tuple[str, ...]] = {
    # connection_exception, _does_not_exist, _failure, protocol_violation; admin_shutdown, crash_shutdown,
    # idle_session_timeout, idle_in_transaction_session_timeout, transaction_timeout
    Failure.DISCONNECT: ("08000", "08003", "08006", "08P01", "57P01", "57P02", "57P05", "25P03", "25P04"),
    # unable to connect, rejected; too_many_connections, cannot_connect_now (starting up, shutting down, in recovery),
    # database_dropped; invalid authorization, invalid password: rotated under us, no request can help it
    Failure.UNAVAILABLE: ("08001", "08004", "53300", "57P03", "57P04", "28000", "28P01"),
    Failure.READ_ONLY: ("25006",),
    Failure.SERIALIZATION: ("40001",),
    Failure.DEADLOCK: ("40P01",),
    Failure.LOCK_TIMEOUT: ("55P03",),
    Failure.IN_DOUBT: ("08007", "40003"),  # transaction_resolution_unknown, statement_completion_unknown
}
_NUMBERS: dict[Failure, tuple[int, ...]] = {
    # server shutdown, network read and write errors, connection killed, idle for too long; client: gone away, lost,
    # commands out of sync and malformed packet (of no use), lost during handshake or command
    Failure.DISCONNECT: (1053, 1158, 1159, 1160, 1161, 1927, 4031, 2006, 2013, 2014, 2027, 2045, 2055),
    # too many connections (in all, by user, by hour), host blocked, access denied, new thread impossible; client:
    # cannot connect by socket, by TCP, unknown host
    Failure.UNAVAILABLE: (1040, 1203, 1226, 1129, 1130, 1045, 1698, 1135, 2002, 2003, 2005),
    # read-only transaction, read-only mode; 1290 is looked at below
    Failure.READ_ONLY: (1792, 1836),
    # record changed since last read (MariaDB's innodb_snapshot_isolation)
    Failure.SERIALIZATION: (1020,),
    Failure.DEADLOCK: (1213,),
    Failure.LOCK_TIMEOUT: (1205, 3572),
}
CODES: dict[str | int, Failure] = {
    code: failure
    for table in (_SQLSTATES, _NUMBERS)
    for failure, codes in table.items()
    for code in codes
}  # fmt: skip
_SILENCE = frozenset({errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})
_NO_DATABASE = lazily(r'database ".*" does not exist')
_CREDENTIALS = frozenset({"28000", "28P01", 1045, 1130, 1698})  # of a user, a password, a host that is not allowed
_ATTEMPT = "connection to server "  # libpq tells of each address that it has tried, and with and without TLS
# What will be so the next time, too, in words: libpq has no code for what is met while it connects, and the others have
# theirs for whatever ends a handshake, so also for a server that restarts.
_LASTING = lazily(
    # No TLS at the other end; or no certificate, or one that is not taken: ours, theirs, or the one to check it by.
    r"SSL (is|was) required|certificate verify failed|TLS/SSL error: .*certificate|SSL error: no such file"
    r'|certificate file "|private key file|server certificate for "|valid client certificate|no certificate or crl'
    r"|PEM lib|key values mismatch|Invalid (CA )?Certificate|alert (unknown ca|protocol version|(bad )?certificate)"
    # An argument that is none; a login that the server takes from nobody, or not from here, or not like that.
    r"|invalid \w+ value|weak sslmode|invalid SSL protocol|invalid value for parameter|unrecognized configuration"
    r'|pg_hba\.conf|role ".*" (does not exist|is not permitted)',
    re.IGNORECASE,
)
# mysql-connector's own, for which it has closed the connection; with the number of a server's limit for a statement.
_TIMEOUTS = frozenset({"ConnectionTimeoutError", "ReadTimeoutError", "WriteTimeoutError"})
_OPTION_PREVENTS_STATEMENT = 1290  # "running with the --read-only option", or with one that has nothing to do with it


def code_of(error: BaseException) -> str | int | None:
    """The SQLSTATE or error number that the driver gives with `error` (a DBAPI error), or None."""
    first: Any = error.args[0] if error.args else None
    if isinstance(error, OSError) or _closed(error):  # its errno is the system's; it was no answer of the server's
        return None
    if isinstance(first, dict):  # pg8000: the fields of the server's message
        return first.get("C")
    # MySQL's drivers tell both (PyMySQL since 1.2), and HY000 means "see the number"; libpq's have no number.
    number = getattr(error, "errno", None)
    if not isinstance(number, int):
        number = first
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    for name in ("sqlstate", "pgcode"):  # psycopg; psycopg2
        if state := getattr(error, name, None):
            return str(state)
    return None


def classify(error: BaseException, *, connecting: bool = False) -> Failure:
    """What `error`, from SQLAlchemy or from the driver, means; `connecting`: it came while a connection was opened."""
    disconnect = False
    if isinstance(error, exc.TimeoutError | DatabaseUnavailable):  # the pool's: exhausted; the breaker's
        return Failure.UNAVAILABLE
    if isinstance(error, exc.DBAPIError):
        disconnect = error.connection_invalidated
        error = error.orig or error
    code = code_of(error)
    failure = CODES.get(code) if code is not None else None
    if code == _OPTION_PREVENTS_STATEMENT and "read" in str(error) and "only" in str(error):
        failure = Failure.READ_ONLY
    if failure is None and (network_failed(error) or _closed(error)):
        failure = Failure.DISCONNECT
    if connecting and failure in (None, Failure.DISCONNECT) and _operational(error) and not _no_such_database(error):
        return Failure.UNAVAILABLE
    if failure is None:
        failure = Failure.DISCONNECT if disconnect else Failure.OTHER
    return failure


def network_failed(error: BaseException) -> bool:
    """Whether it is the socket's own error. pg8000 lets those through, and SQLAlchemy takes them for the program's."""
    if not isinstance(error, OSError):
        return False
    tls = any(cls.__module__ == "ssl" for cls in type(error).__mro__)
    # A TimeoutError without the kernel's number is somebody's deadline: an interrupt.
    return tls or isinstance(error, ConnectionError) or error.errno in _SILENCE


def refused(error: BaseException) -> bool:
    """Whether the driver's `error` is the server's own answer: what was asked for failed, and is not in doubt.

    An interrupt, a timeout of the driver's, or a broken wire is none.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    if "Error" not in names:  # PEP 249's: else it is an interrupt, with a number of its own, such as gevent.Timeout(5)
        return False
    if "NotSupportedError" in names:
        return True  # psycopg's own for a refused PREPARE TRANSACTION, without the server's code
    code = code_of(error)
    # 2000 to 2999 are the errors of MySQL's client library: nothing came from the server.
    if code is None or (isinstance(code, int) and 2000 <= code < 3000):
        return False
    return CODES.get(code) not in (Failure.DISCONNECT, Failure.IN_DOUBT)


def may_pass(error: BaseException) -> bool:
    """Whether `error`, met in connecting, may be over in a moment: a password or a certificate that is refused is not.

    Nor is TLS where there is none, or an argument that is none. In doubt it may: pg8000 has the same words for a server
    without TLS and for one that ends.
    """
    text = str(error)
    if code_of(error) in _CREDENTIALS or "password authentication failed" in text:
        return False
    if isinstance(error, FileNotFoundError | PermissionError):  # of a certificate; of a socket it is the driver's own
        return False
    return not all(_LASTING.search(each) for each in text.split(_ATTEMPT)[1:] or [text])


def _no_such_database(error: BaseException) -> bool:
    """libpq's drivers have no SQLSTATE for what happens while they connect; MySQL's 1049 and 1044 are no such table."""
    return code_of(error) in (1049, 1044, "3D000") or bool(_NO_DATABASE.search(str(error)))


def _closed(error: BaseException) -> bool:
    """Whether mysql-connector has closed the connection, and says so by a class or, without a number, in words."""
    if not type(error).__module__.startswith("mysql.connector"):
        return False
    return type(error).__name__ in _TIMEOUTS or (getattr(error, "errno", 0) == -1 and "not available" in str(error))


def _operational(error: BaseException) -> bool:
    """Whether PEP 249 files this under the database's operation, or it is the network's: not under the program's."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"OperationalError", "InterfaceError", "OSError", "ConnectionTimeoutError"})
