"""The ways to the database: each does one beat at a time, bounded, and tells how it went.

Opening a connection is bounded as the guard does it (`connecting`), a statement by cutting the socket. Where a driver
tells no socket (mysql-connector in C) a statement can take longer: whoever asks for beats must not wait for it.

The kept connection is the model of what lies in an application's pool. The fresh one tells a server or network that is
away from connections that are dead, and asks for how long the server has been up: a server that restarts between two
beats fails no fresh connection.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, Executable, event, exc
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from wsgi_dbguard import connecting, registry
from wsgi_dbguard.guards import guard, guard_of
from wsgi_dbguard.link import Link
from wsgi_dbguard.watchdog import Deadline

from .beats import Beat, Trouble, Way
from .notices import CRASH, crash, notices_of
from .target import Target
from .troubles import trouble_of

__all__ = ["Fresh", "Kept", "OneWay", "Pooled", "Statement"]

Statement = Callable[[Way, int], Executable]

_SHORTEST = 2.0  # seconds, of the guard's setting connect_timeout
_AGAIN = 0.2  # seconds after which a socket that was made meanwhile is cut as well
_UPTIME = {
    "postgresql": "select extract(epoch from clock_timestamp() - pg_postmaster_start_time())",
    "mysql": "show global status like 'Uptime'",
    "mariadb": "show global status like 'Uptime'",
}
_NAMED = ("psycopg2", "psycopg", "pg8000")  # drivers that tell PostgreSQL who connects


class _Bound(Deadline):
    """Cuts the way's connection when the time is up, and each one that it opens until the beat has ended."""

    __slots__ = ()

    def expire(self) -> float | None:
        super().expire()
        return _AGAIN


class OneWay:
    """A way to the database; `timeout` is in seconds."""

    way: Way

    def __init__(self, target: Target, *, timeout: float, begun: float, **options: Any) -> None:
        self.target = target
        self.timeout = timeout
        self._begun = begun
        self._link: Link | None = None
        self._heard: Collection[object] = ()
        self.engine: Engine = target.engine(**options)
        event.listen(self.engine, "connect", self._on_connect, insert=True)
        event.listen(self.engine, "do_connect", self._before_connect)

    def _on_connect(self, connection: Any, entry: ConnectionPoolEntry) -> None:
        self._link = registry.link_of(connection, entry)
        self._heard = notices_of(connection)

    def _before_connect(self, dialect: Any, entry: Any, args: Any, keywords: dict[str, Any]) -> None:
        self._link = None
        if dialect.driver in _NAMED and not args and "PGAPPNAME" not in os.environ:
            keywords.setdefault("application_name", f"wsgi-dbguard watch {self.way}")
        if dialect.driver == "psycopg":
            # PgBouncer gives the next transaction another backend, where the statement is not prepared, or somebody's.
            keywords.setdefault("prepare_threshold", None)

    def cut(self) -> None:
        """Shut its connection down, whoever waits for it."""
        link = self._link
        if link is not None:
            link.cut()

    def bounded(self) -> Deadline:
        """For a ``with`` block: what waits in it for the connection fails after `timeout` seconds."""
        return _Bound(self.timeout, self.cut)

    def close(self) -> None:
        """Close what is open."""
        self.engine.dispose()

    def beat(self, number: int, statement: Statement) -> Beat:
        """Send the statement, and tell how that went. Raises nothing that a database can cause."""
        held, uptime, error = self.holds(), None, None
        began = time.monotonic()
        took = 0.0
        deadline = self.bounded()
        try:
            with deadline:
                connection = self.take()
                try:
                    connection.execute(statement(self.way, number)).close()
                    took = time.monotonic() - began
                    uptime = self.after(connection)
                except BaseException:
                    with suppress(Exception):  # the first error is the one to tell
                        self.give(connection)
                    raise
                self.give(connection)
        except Exception as failed:
            error = failed
        took = took or time.monotonic() - began
        told: dict[str, Any] = {"way": self.way, "number": number, "at": began - self._begun, "held": held}
        if error is None:
            return Beat(**told, took=took, uptime=uptime, replaced=self.replaced())
        opening = self._link is None
        self.lose()
        trouble = trouble_of(
            error, expired=deadline.expired, connecting=opening,
            address=self.target.address, timeout=self.timeout,
        )  # fmt: skip
        took = time.monotonic() - began
        # What a driver says of a connection that was cut for it is not the matter.
        line = f"no answer within {self.timeout:g} s" if trouble is Trouble.SILENT else self.target.line(error)
        if trouble is Trouble.BROKEN and not opening and crash(self._heard):
            trouble, line = Trouble.CRASHED, CRASH
        elif trouble is Trouble.SILENT and not opening and not held:
            trouble = Trouble.STUCK
        return Beat(**told, took=took, trouble=trouble, error=line, replaced=self.replaced())

    # What differs

    def take(self) -> Connection:
        """A connection for one beat."""
        return self.engine.connect()

    def give(self, connection: Connection) -> None:
        """The beat is over."""
        connection.close()

    def lose(self) -> None:
        """The beat has failed."""

    def holds(self) -> bool:
        """Whether the next beat goes over a connection that is there."""
        return False

    def after(self, connection: Connection) -> float | None:
        """The server's uptime, seconds, where it is asked for."""
        return None

    def replaced(self) -> dict[str, int]:
        """What a guard replaced since it was asked last, by cause."""
        return {}


class _Unguarded(OneWay):
    def __init__(self, target: Target, *, timeout: float, begun: float) -> None:
        super().__init__(target, timeout=timeout, begun=begun, poolclass=NullPool)
        connecting.install(self.engine.dialect, lambda: self.timeout)

    def _before_connect(self, dialect: Any, entry: Any, args: Any, keywords: dict[str, Any]) -> None:
        super()._before_connect(dialect, entry, args, keywords)
        connecting.bound(dialect.driver, args, keywords, self.timeout)


class Fresh(_Unguarded):
    """A connection opened for each beat."""

    way = Way.FRESH
    _tells = True  # its uptime

    def after(self, connection: Connection) -> float | None:
        if not self._tells:
            return None
        try:
            row = connection.exec_driver_sql(_UPTIME[connection.dialect.name]).one()
            return float(row[-1])
        except (exc.DBAPIError, exc.NoResultFound, TypeError, ValueError) as error:
            if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
                raise
            self._tells = False  # what speaks PostgreSQL's protocol need not know its functions
            return None


class Kept(_Unguarded):
    """One connection for all beats, opened anew only when it has failed."""

    way = Way.KEPT
    _connection: Connection | None = None

    def take(self) -> Connection:
        if self._connection is None:
            self._connection = self.engine.connect()
        return self._connection

    def give(self, connection: Connection) -> None:
        connection.rollback()  # SQLAlchemy's transaction; in autocommit the server has none

    def lose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def holds(self) -> bool:
        return self._connection is not None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        super().close()


class Pooled(OneWay):
    """A pool under the guard, with the guard's settings from the URL and the environment."""

    way = Way.POOL

    def __init__(self, target: Target, *, timeout: float, begun: float) -> None:
        super().__init__(target, timeout=timeout, begun=begun, guarded=True)
        # As an application's, but a connection is opened within the time of a beat.
        self.guard = guard_of(self.engine) or guard(self.engine, connect_timeout=max(timeout, _SHORTEST))
        self._counted: Counter[str] = Counter()

    def holds(self) -> bool:
        return bool(self.guard.links())

    def replaced(self) -> dict[str, int]:
        now = Counter(self.guard.stats()["replaced"])
        new = now - self._counted
        self._counted = now
        return dict(new)
