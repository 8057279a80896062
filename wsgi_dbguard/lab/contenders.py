"""The pools that a fault is tried on: one for each driver and contender, alike in everything but what looks after them.

A request is a token that goes to the database and comes back, in a transaction of its own; one that comes back as
something else is a wrong answer. `Pool.ask` raises what the driver or SQLAlchemy raise.

Example::

    pool = Pool(driver_named("psycopg"), Contender.GUARD, url, dial=lambda: ("127.0.0.1", 5432))
    pool.with_all(lambda connection: None)      # five connections are in the pool now
    assert pool.ask("token") == "token"
    pool.close()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from enum import StrEnum
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, text

from wsgi_dbguard import PoolGuard, guard, sockets

from .drivers import Driver

__all__ = ["SETTINGS", "SIZE", "Address", "Contender", "Pool"]

Address = tuple[str, int]

SIZE = 5  # connections of a pool
SETTINGS: Mapping[str, Any] = {
    "ping_timeout": 0.5,
    "user_timeout": 1.0,
    "idle_timeout": None,
    "max_lifetime": None,
}
"""The guard's, unless a fault says otherwise: short, so that no fault takes longer than a second or two."""

_ECHO = text("SELECT CAST(:token AS CHAR(36))")
_WRITE = text("INSERT INTO written VALUES (:token)")


class Contender(StrEnum):
    """What looks after a pool."""

    NOTHING = "nothing"
    PRE_PING = "pool_pre_ping"
    GUARD = "guard"


class Pool:
    """One contender's pool, with one driver, to the server at `url` with whatever `dial` says its address is now.

    `session`: statements for each new connection; `writes`: a request writes a row as well; `settings`: the guard's;
    `arguments`: for the driver; `options`: for `create_engine`.
    """

    def __init__(
        self,
        driver: Driver,
        contender: Contender,
        url: URL,
        *,
        dial: Callable[[], Address],
        session: Iterable[str] = (),
        writes: bool = False,
        settings: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.driver = driver
        self.contender = contender
        self.connects = 0
        self._dial = dial
        self._session = tuple(session)
        self._writes = writes
        self._sockets: list[tuple[int, sockets.Identity | None]] = []
        self.engine = create_engine(
            driver.url(url),
            pool_size=SIZE,
            max_overflow=1,
            pool_pre_ping=contender is Contender.PRE_PING,
            connect_args=dict(arguments or {}),
            **(options or {}),
        )
        event.listen(self.engine, "do_connect", self._redirect)
        event.listen(self.engine, "connect", self._connected)
        self.guard: PoolGuard | None = None
        if contender is Contender.GUARD:
            self.guard = guard(self.engine, **{**SETTINGS, **(settings or {})})

    def __repr__(self) -> str:
        return f"<Pool {self.driver} {self.contender}>"

    def _redirect(self, dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        keywords["host"], keywords["port"] = self._dial()

    def _connected(self, connection: Any, entry: Any) -> None:
        self.connects += 1
        fd = sockets.fileno(connection)
        if fd is not None:
            self._sockets.append((fd, sockets.identity(fd)))
        for statement in self._session:
            cursor = connection.cursor()
            cursor.execute(statement)
            cursor.close()
        connection.commit()

    def ask(self, token: str) -> str:
        """One request."""
        with self.engine.connect() as connection:
            return self.echo(connection, token)

    def echo(self, connection: Connection, token: str) -> str:
        """What a request does with its connection."""
        answer = connection.scalar(_ECHO, {"token": token})
        if self._writes:
            connection.execute(_WRITE, {"token": token})
            connection.commit()
        return str(answer).strip()  # CHAR is padded

    def write_read_only(self) -> None:
        """Write a row in a transaction that was made READ ONLY, which no server allows."""
        with self.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(postgresql_readonly=True)
            else:
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            connection.execute(_WRITE, {"token": "none"})

    def with_all(self, act: Callable[[Connection], object]) -> None:
        """Have all connections of the pool out at once, and do something with each of them."""
        with ExitStack() as stack:
            for connection in [stack.enter_context(self.engine.connect()) for _ in range(SIZE)]:
                act(connection)
                connection.commit()

    @property
    def ended(self) -> int:
        """How many of all connections it ever had were closed or have heard of their end, where sockets are known."""
        return len(self._sockets) - len(self._open()) + self._count(sockets.DEAD)

    @property
    def news(self) -> int:
        """How many of its connections have something to read."""
        return self._count(sockets.SUSPECT)

    @property
    def known(self) -> bool:
        """Whether the driver tells its sockets."""
        return bool(self._sockets)

    def _open(self) -> list[int]:
        return [fd for fd, identity in self._sockets if identity is not None and sockets.identity(fd) == identity]

    def _count(self, events: int) -> int:
        return sum(bool(sockets.happened(fd) & events) for fd in self._open())

    def cut(self) -> None:
        """Wake up whoever waits for an answer on a connection of this pool."""
        for fd in self._open():
            sockets.cut(fd)

    def close(self) -> None:
        """Close what is in the pool."""
        self.engine.dispose()
