"""What one driver leaves undone that the others do: small mends, put on a connection when it is opened.

pg8000: an interrupt in the middle of a query (a greenlet's timeout, KeyboardInterrupt, SystemExit) leaves the answer on
its way, and the next query takes it for its own. SQLAlchemy throws such a connection away where it sees the interrupt;
under ``raw_connection()`` it sees none, and the connection goes back to the pool. PyMySQL closes the connection on any
`BaseException`, psycopg knows that a query is running, drivers in C are not interrupted: so is pg8000 mended here.

Example::

    mend(dbapi_connection, fd)      # nothing happens for a driver that needs nothing
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from . import sockets

__all__ = ["mend"]

# The methods that send something and read the answer, by the driver's top package.
_CONVERSATIONS: dict[str, tuple[str, ...]] = {
    "pg8000": ("execute_simple", "execute_unnamed", "execute_named", "prepare_statement"),
}


def mend(connection: Any, fd: int | None) -> None:
    """Have an interrupt in the middle of a conversation end the connection on descriptor `fd`."""
    if fd is None:
        return
    for name in _CONVERSATIONS.get(type(connection).__module__.partition(".")[0], ()):
        method = getattr(type(connection), name, None)
        if method is not None and name not in vars(connection):
            setattr(connection, name, _ended_by_interrupt(weakref.ref(connection), method, fd))


def _ended_by_interrupt(connection: Callable[[], Any], method: Callable[..., Any], fd: int) -> Callable[..., Any]:
    # The connection is referred to weakly, since this becomes one of its attributes.
    @functools.wraps(method)
    def conversation(*args: Any, **keywords: Any) -> Any:
        try:
            return method(connection(), *args, **keywords)
        except Exception:
            raise
        except BaseException:
            sockets.cut(fd)
            raise

    return conversation
