"""A driver and a server of its database, plain or encrypted: what a test of every driver is given.

Each server starts when it is first asked for, and serves until the end of the block.

Example::

    with Peers() as peers:
        peer = peers("mysqlclient", tls=True)
        engine = create_engine(peer.url())
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from .drivers import Database, driver_named
from .inherited import SQL, sql_of
from .mariadb import MariaDB
from .postgres import PostgreSQL
from .process import wait_until
from .provision import ServerMissing

__all__ = ["Peer", "Peers", "ServerMissing"]


@dataclass(frozen=True)
class Peer:
    """`driver`: its name, as in `drivers`."""

    driver: str
    server: PostgreSQL | MariaDB
    sql: SQL

    @property
    def certificate(self) -> str | None:
        """The file with the server's certificate, None where it is not to be used."""
        return str(self.server.certificate) if self.server.tls else None

    def url(self, port: int | None = None) -> str:
        """A SQLAlchemy URL of the server, or of a proxy of it on another `port` of the same host."""
        return self.server.url_through(self.server.host, port or self.server.port, self.driver)

    def alone(self) -> None:
        """Wait until nobody is connected to the server. Raises TimeoutError when somebody is for 20 seconds."""
        wait_until(lambda: not self.server.backends(), timeout=20.0, what=f"the end of {self.server.backends()}")


class Peers:
    """Called with a driver's name; raises ServerMissing when the driver is not installed or its server is not."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: dict[tuple[Database, bool], PostgreSQL | MariaDB] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __call__(self, driver: str, *, tls: bool = False) -> Peer:
        known = driver_named(driver)
        if reason := known.missing():
            raise ServerMissing(reason)
        wanted = known.database, tls
        if wanted not in self._servers:
            server: PostgreSQL | MariaDB = PostgreSQL(tls=tls) if known.database == "postgresql" else MariaDB(tls=tls)
            self._stack.enter_context(server)
            self._servers[wanted] = server
        return Peer(driver, self._servers[wanted], sql_of(known.database))
