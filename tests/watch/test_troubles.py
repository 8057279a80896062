"""Which trouble is an error: drivers' errors as they come."""

from __future__ import annotations

import errno
import socket

import psycopg
import psycopg2
import pymysql
import pytest
from sqlalchemy.exc import OperationalError

from wsgi_dbguard.errors import DatabaseUnavailable
from wsgi_dbguard.watch import Trouble
from wsgi_dbguard.watch.troubles import trouble_of

PSYCOPG2 = 'connection to server at "db", port 5432 failed: '


def wrapped(error: BaseException, *, disconnect: bool = False) -> OperationalError:
    return OperationalError("insert", {}, error, connection_invalidated=disconnect)


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (psycopg2.OperationalError(PSYCOPG2 + "Connection refused\n\tIs the server running?"), Trouble.REFUSED),
        (psycopg2.OperationalError(PSYCOPG2 + "FATAL:  the database system is starting up"), Trouble.ANSWERED),
        (psycopg2.OperationalError(PSYCOPG2 + "timeout expired"), Trouble.SILENT),
        (psycopg2.OperationalError(PSYCOPG2 + "No route to host"), Trouble.UNREACHABLE),
        (psycopg2.OperationalError('could not translate host name "db" to address'), Trouble.UNREACHABLE),
        (psycopg2.OperationalError(PSYCOPG2 + "server closed the connection unexpectedly"), Trouble.BROKEN),
        (pymysql.OperationalError(2003, "Can't connect ([Errno 111] Connection refused)"), Trouble.REFUSED),
        (pymysql.OperationalError(2003, "Can't connect (timed out)"), Trouble.SILENT),
        (pymysql.OperationalError(1040, "Too many connections"), Trouble.ANSWERED),
        (pymysql.OperationalError(2013, "Lost connection to MySQL server during query"), Trouble.BROKEN),
    ],
)
def test_a_connection_that_could_not_be_opened(error: Exception, trouble: Trouble) -> None:
    assert trouble_of(wrapped(error), connecting=True) is trouble


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (psycopg2.OperationalError("terminating connection due to administrator command"), Trouble.ENDED),
        (
            psycopg2.OperationalError("terminating connection because of crash of another server process"),
            Trouble.CRASHED,
        ),
        (psycopg2.OperationalError("server closed the connection unexpectedly"), Trouble.BROKEN),
        (pymysql.OperationalError(1927, "Connection was killed"), Trouble.ENDED),
        (pymysql.OperationalError(2006, "MySQL server has gone away (BrokenPipeError)"), Trouble.BROKEN),
        (pymysql.OperationalError(1290, "running with the --read-only option"), Trouble.READ_ONLY),
        (pymysql.OperationalError(1114, "The table is full"), Trouble.ANSWERED),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Trouble.BROKEN),
    ],
)
def test_a_connection_that_was_there(error: Exception, trouble: Trouble) -> None:
    assert trouble_of(wrapped(error, disconnect=trouble is Trouble.BROKEN)) is trouble


def test_pooler_that_cannot_reach_its_server_says_so() -> None:
    error = psycopg.errors.ProtocolViolation("server login has been failing, try again later (server_login_retry)")
    assert trouble_of(wrapped(error, disconnect=True)) is Trouble.ANSWERED


def test_connection_that_was_cut_when_its_time_was_up_was_silent_whatever_the_driver_says() -> None:
    error = wrapped(psycopg2.OperationalError("server closed the connection unexpectedly"), disconnect=True)
    assert trouble_of(error, expired=True) is Trouble.SILENT


def test_guard_that_did_not_ask_says_away() -> None:
    assert trouble_of(DatabaseUnavailable(None, None, Exception("away"))) is Trouble.AWAY


@pytest.mark.parametrize("listening", [True, False])
def test_driver_that_tells_no_reason_is_looked_after_by_tcp(listening: bool) -> None:
    error = wrapped(pymysql.OperationalError(2002, "Can't connect to server on '127.0.0.1' (115)"))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        found = trouble_of(error, connecting=True, address=server.getsockname(), timeout=60.0)
    assert found is (Trouble.BROKEN if listening else Trouble.REFUSED)
