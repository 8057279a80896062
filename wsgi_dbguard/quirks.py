"""What one driver leaves undone that the others do: small mends, put on a connection when it is opened.

pg8000: an interrupt in the middle of a query (a greenlet's timeout, KeyboardInterrupt, SystemExit) leaves the answer on
its way, and the next query takes it for its own. SQLAlchemy throws such a connection away where it sees the interrupt;
under ``raw_connection()`` it sees none, and the connection goes back to the pool. PyMySQL closes the connection on any
`BaseException`, psycopg knows that a query is running, drivers in C are not interrupted: so is pg8000 mended here.

mysql-connector, in Python: the same, and when its own ``read_timeout`` is over, which it says closes the connection.
And what follows the first result of a CALL stays unread, so that the next command, COMMIT too, takes it for its
answer. What has arrived by the next checkout is found there; what has not is not. Other drivers read it when the
cursor is closed: here it is read before the next command. An error in it (the procedure failed after its first result)
is logged, as SQLAlchemy does with what the others raise at the cursor's end.

mariadb: a connection that ends in the middle of an unbuffered result looks like the end of the result (1.1.14 does not
ask mysql_errno after mysql_fetch_row): fewer rows and no error. Buffered results, and all other drivers, say so.

Example::

    mend(dbapi_connection)          # nothing happens for a driver that needs nothing
    mend_streams(dbapi_connection)
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

from . import sockets

__all__ = ["mend", "mend_streams"]

logger = logging.getLogger(__name__)

# The methods that send something and read the answer, by the driver's top package.
_CONVERSATIONS: dict[str, tuple[str, ...]] = {
    "pg8000": ("execute_simple", "execute_unnamed", "execute_named", "prepare_statement"),
    "mysql": ("_send_cmd", "_handle_result", "get_rows"),
}
_LOST = 2013  # CR_SERVER_LOST


def mend(connection: Any) -> None:
    """Have an interrupt in the middle of a conversation end the connection, whose socket its driver tells."""
    for name in _CONVERSATIONS.get(type(connection).__module__.partition(".")[0], ()):
        method = getattr(type(connection), name, None)
        if method is not None and name not in vars(connection):
            if name == "_send_cmd":
                method = _after_the_rest(method)
            elif name in ("_handle_result", "get_rows"):
                method = _last_if_it_fails(method)
            setattr(connection, name, _ended_by_interrupt(weakref.ref(connection), method))


def mend_streams(connection: Any) -> None:
    """Have a result that is not whole end with an error, in a forked child as well."""
    if type(connection).__module__.partition(".")[0] == "mariadb" and "cursor" not in vars(connection):
        connection.cursor = _cursor_with_whole_results(weakref.ref(connection), type(connection).cursor)


def _cursor_with_whole_results(connection: Callable[[], Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def cursor(*args: Any, **keywords: Any) -> Any:
        made = method(connection(), *args, **keywords)
        if not made.buffered:
            base: Any = type(made)
            made.__class__ = _whole(base)
        return made

    return cursor


@functools.cache
def _whole(base: Any) -> Any:
    """A subclass of this class of mariadb's cursors that finds the connection open at the end of the rows."""

    class Cursor(base):  # type: ignore[misc]
        def _whole(self, rows: Any) -> Any:
            connection = self.connection
            if not self.buffered and connection._get_socket() < 0:  # libmariadb closes it when a read fails
                error = connection.OperationalError("Lost connection to server during query")
                error.errno = _LOST
                self.close()  # one that outlives its connection crashes the interpreter when it is collected
                raise error
            return rows

        def fetchone(self) -> Any:
            row = super().fetchone()
            return self._whole(row) if row is None else row

        def fetchmany(self, size: int = 0) -> Any:
            rows = super().fetchmany(size)
            return self._whole(rows) if len(rows) < (size or self.arraysize) else rows

        def fetchall(self) -> Any:
            return self._whole(super().fetchall())

    Cursor.__name__, Cursor.__qualname__, Cursor.__module__ = base.__name__, base.__qualname__, base.__module__
    return Cursor


def _ended_by_interrupt(connection: Callable[[], Any], method: Callable[..., Any]) -> Callable[..., Any]:
    # The connection is referred to weakly, since this becomes one of its attributes.
    @functools.wraps(method)
    def conversation(*args: Any, **keywords: Any) -> Any:
        try:
            return method(connection(), *args, **keywords)
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error.__cause__, TimeoutError):
                _cut(connection())
            raise

    return conversation


def _cut(connection: Any) -> None:
    # Asked now: its first descriptor may be another connection's, where the driver has connected anew.
    sockets.cut(sockets.fileno(connection))


def _after_the_rest(send: Callable[..., Any]) -> Callable[..., Any]:
    """For mysql-connector: `send` a command once all that the server still answers to the last one was read."""

    @functools.wraps(send)
    def command(connection: Any, *args: Any, **keywords: Any) -> Any:
        while connection._have_next_result:
            connection.handle_unread_result()  # as before each command: an error where a result is still wanted
            connection._have_next_result = False  # until the server says so again
            try:
                connection._handle_result(connection._socket.recv(connection._read_timeout))
                if connection.unread_result:
                    connection.get_rows(raw=True)
            except Exception as error:
                if not getattr(error, "sqlstate", None):  # none of the server's: who knows what comes next
                    _cut(connection)
                    raise
                logger.exception("what followed a result that was read is an error")
        return send(connection, *args, **keywords)

    return command


def _last_if_it_fails(read: Callable[..., Any]) -> Callable[..., Any]:
    """For mysql-connector: what follows an error is nothing, though it was told before that there would be more."""

    @functools.wraps(read)
    def result(connection: Any, *args: Any, **keywords: Any) -> Any:
        try:
            return read(connection, *args, **keywords)
        except Exception:
            connection._have_next_result = False
            raise

    return result
