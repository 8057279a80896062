"""A private PgBouncer in front of a private PostgreSQL: the pooler whose socket outlives the server's backend.

Between an application's pool and the server it makes two connections of one, so that a backend can die, or be another
one from transaction to transaction, while the client's socket stays healthy. Not for what needs a session in
transaction mode: server-side prepared statements (psycopg 3: `prepare_threshold=None`), LISTEN, temporary tables.

The program is Debian's (pgbouncer). As root it runs as `nobody`, since it refuses root.

Example::

    with PostgreSQL() as database, PgBouncer(database, mode="transaction") as pooler:
        engine = create_engine(pooler.url("psycopg2"))
        with engine.connect():
            pass
        database.terminate()               # the engine's socket to PgBouncer does not show it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .postgres import PostgreSQL
from .process import Child
from .provision import ServerMissing, program
from .server import NAME, PrivateServer

__all__ = ["PgBouncer", "ServerMissing"]

SETTINGS = {
    "default_pool_size": "20",
    "max_client_conn": "200",
    "ignore_startup_parameters": "extra_float_digits,options",
    "server_login_retry": "0.1",  # s; after a failed login at the server, the default has everybody wait for 15
}


class PgBouncer(PrivateServer):
    """PgBouncer for the database of `server`, not started yet.

    `mode`: "transaction" gives a client a backend for each transaction, "session" for as long as it stays; `settings`:
    more lines for the section [pgbouncer] of its configuration. Between it and the clients there is no TLS.

    `stop()` and `restart()` disconnect the clients at once. Raises ServerMissing when it is not installed.
    """

    name = "PgBouncer"

    def __init__(
        self,
        server: PostgreSQL,
        *,
        mode: Literal["transaction", "session"] = "transaction",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._program = program("pgbouncer", package="pgbouncer")
        super().__init__()
        self.server = server
        self.mode = mode
        self.settings = {**SETTINGS, **(settings or {})}

    def url(self, driver: str = "psycopg2", **query: str) -> str:
        """A SQLAlchemy URL of the database through PgBouncer, with `query` as its connection parameters."""
        if self.server.tls:
            query = {"sslmode": "disable", **query}
        return self.server.url_through(self.host, self.port, driver, **query)

    def _configure(self) -> None:
        users = self._write("users.txt", f'"{NAME}" ""\n')
        settings = {
            **self.settings,
            "pool_mode": self.mode,
            "listen_addr": self.host,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": str(users),
            "admin_users": NAME,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        database = f"{NAME} = host={self.server.host} port={self.server.port}"
        self._write("pgbouncer.ini", "\n".join(["[databases]", database, "[pgbouncer]", *lines, ""]))

    def _launch(self) -> Child:
        return self._run(self._program, self._private / "pgbouncer.ini")
