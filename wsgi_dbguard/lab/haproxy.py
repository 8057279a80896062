"""A private HAProxy in tcp mode in front of a private database server: the load balancer between pool and database.

It takes every connection, also while the server is down, and ends it when the server cannot be reached; it ends those
that were silent for as long as its timeouts say; and a client's socket is healthy for as long as HAProxy thinks so.

The program is Debian's (haproxy). As root it runs as `nobody`.

Example::

    with MariaDB() as database, HAProxy(database, settings={"timeout client": "1s"}) as balancer:
        engine = create_engine(balancer.url("pymysql"))
"""

from __future__ import annotations

from collections.abc import Mapping

from .process import Child
from .provision import ServerMissing, program
from .server import DatabaseServer, PrivateServer

__all__ = ["HAProxy", "ServerMissing"]

SETTINGS = {
    "timeout connect": "5s",
    "timeout client": "1h",
    "timeout server": "1h",
}


class HAProxy(PrivateServer):
    """HAProxy for `server`, not started yet.

    `settings`: more lines for the section `defaults` of its configuration, such as `{"timeout client": "50s"}` for how
    long a client may be silent, `{"retries": "0"}`, or `{"option clitcpka": ""}`.

    `stop()` and `restart()` disconnect the clients at once. Raises ServerMissing when it is not installed.
    """

    name = "HAProxy"

    def __init__(self, server: DatabaseServer, *, settings: Mapping[str, str] | None = None) -> None:
        self._program = program("haproxy", package="haproxy")
        super().__init__()
        self.server = server
        self.settings = {**SETTINGS, **(settings or {})}

    def url(self, driver: str | None = None, **query: str) -> str:
        """A SQLAlchemy URL of the database through HAProxy, like the server's own `url()`."""
        drivers = {} if driver is None else {"driver": driver}
        return self.server.url_through(self.host, self.port, **drivers, **query)

    def _configure(self) -> None:
        lines = [
            "global",
            "    maxconn 500",
            "    nbthread 1",
            "defaults",
            "    mode tcp",
            *(f"    {name} {value}" for name, value in self.settings.items()),
            "listen database",
            f"    bind {self.host}:{self.port}",
            f"    server database {self.server.host}:{self.server.port}",
            "",
        ]
        self._write("haproxy.cfg", "\n".join(lines))

    def _launch(self) -> Child:
        return self._run(self._program, "-db", "-f", self._private / "haproxy.cfg")
