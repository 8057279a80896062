"""A private MariaDB server for demo, tests and benchmarks: started, restarted, killed and paused at will.

What `postgres` is for PostgreSQL, with the same interface: a real server with worthless data on 127.0.0.1 and on a Unix
socket in a private directory, which does not fsync and is gone without a trace at the end. It starts in about a second,
its system tables included. As root it runs as `nobody`. Nothing here is for data that somebody would miss.

The programs are Debian's (mariadb-server-core). No option file is read.

Example::

    with MariaDB() as database:
        engine = create_engine(database.url("mysqlclient"))
        with engine.connect():
            pass
        database.terminate()               # KILL of what is idle; the pool of `engine` does not know it yet
        database.query("select 1")         # over a connection of its own
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pymysql
from pymysql.constants import ER
from sqlalchemy import URL

from .drivers import DRIVERS
from .process import Child, wait_until
from .provision import ServerMissing, program
from .server import NAME, DatabaseServer
from .template import fill

__all__ = ["MariaDB", "ServerMissing"]

ADMIN = "dbguard-admin"

_DIALECTS = {driver.name: driver.dialect for driver in DRIVERS}
# How each says "encrypted, whoever the server is": a proxy has another address than the certificate.
_TLS: dict[str, dict[str, str]] = {
    "mysql+pymysql": {"ssl_check_hostname": "false"},
    "mysql+mysqldb": {"ssl_mode": "REQUIRED"},
    "mysql+mysqlconnector": {"ssl_ca": "{certificate}"},  # without one it does not encrypt
    "mariadb+mariadbconnector": {"ssl": "true", "ssl_verify_cert": "false"},
}

# For speed, small and quiet. With 2 a commit is in the kernel's hands before it is answered: SIGKILL loses none.
SETTINGS = {
    "skip_name_resolve": "ON",
    "character_set_server": "utf8mb4",
    "default_time_zone": "+00:00",
    "max_connections": "200",
    "performance_schema": "OFF",
    "innodb_buffer_pool_size": "16M",
    "innodb_log_file_size": "4M",
    "innodb_data_file_path": "ibdata1:4M:autoextend",
    "innodb_temp_data_file_path": "ibtmp1:1M:autoextend",
    "innodb_autoextend_increment": "1",
    "innodb_flush_method": "nosync",
    "innodb_flush_log_at_trx_commit": "2",
    "innodb_doublewrite": "OFF",
    "innodb_fast_shutdown": "2",
    "innodb_buffer_pool_dump_at_shutdown": "OFF",
    "innodb_buffer_pool_load_at_startup": "OFF",
    "key_buffer_size": "1M",
    "aria_pagecache_buffer_size": "1M",
}

_TABLES = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")
# `read_only` and the last connection above `max_connections` are for nobody but the admin: `dbguard` is an ordinary
# user, as applications should be, and an ordinary error is what it gets.
_ACCOUNTS = f"""
flush privileges;
create database {NAME};
create user '{ADMIN}'@'localhost', '{NAME}'@'localhost', '{NAME}'@'%';
grant all on *.* to '{ADMIN}'@'localhost' with grant option;
grant all on {NAME}.* to '{NAME}'@'localhost', '{NAME}'@'%';
"""
_LONGEST = 31536000  # seconds; the highest wait_timeout there is


class MariaDB(DatabaseServer):
    """One server and its data directory, not started yet; the first start fills the directory.

    `settings`: more options, by name with underscores, such as `{"wait_timeout": "2"}`; `tls`: with a self-signed
    certificate for 127.0.0.1 and localhost, in the file `certificate` (plain connections are served too); `directory`:
    where the data live and stay; by default a new one that `close()` removes. As root, `nobody` must be able to reach
    it. `socket` is the file of its Unix socket.

    Raises ServerMissing when there is no server to run.
    """

    name = "MariaDB"

    def __init__(
        self, *, settings: Mapping[str, str] | None = None, tls: bool = False, directory: Path | None = None
    ) -> None:
        self._program = program("mariadbd", package="mariadb-server-core")
        super().__init__({**SETTINGS, **(settings or {})}, tls=tls, directory=directory)
        self.socket = self._private / "mariadb.sock"
        with self._closed_on_error():
            told = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True)
            self.version = re.sub(r"^.* Ver (\d[\d.]*).*$", r"\1", told.stdout.strip())

    # Clients

    def url(self, driver: str = "pymysql", **query: str) -> str:
        """A SQLAlchemy URL of the server, with `query` as its connection parameters.

        `driver`: the name of one in `drivers`, such as mysqlclient, or what comes after "mysql+" in SQLAlchemy's. With
        `tls` it asks for encryption, without verifying the host, unless `query` has anything to say about ssl.
        """
        return self.url_through(self.host, self.port, driver, **query)

    def url_through(self, host: str | Path, port: int, driver: str = "pymysql", **query: str) -> str:
        """The same at another address: of a proxy, or with a path such as `socket` as `host` of a Unix socket."""
        name = _DIALECTS.get(driver, f"mysql+{driver}")
        address: dict[str, Any] = {"host": str(host), "port": port}
        if str(host).startswith("/"):
            query = {"unix_socket": str(host), **query}
            address = {}
        elif self.tls and not any(key.startswith("ssl") for key in query):
            tls = _TLS.get(name, {})
            query |= {key: value.format(certificate=self.certificate) for key, value in tls.items()}
        return URL.create(name, NAME, database=NAME, query=query, **address).render_as_string(hide_password=False)

    def backends(self) -> list[int]:
        """Processlist ids of client connections, oldest first; the admin's left out."""
        return self._backends("true")

    def terminate(self, *ids: int) -> int:
        """KILL these, or with none every idle client connection but the admin's.

        Returns how many were there, when all of those are gone and their sockets closed. Idle means outside a
        transaction, as InnoDB sees it; its list of transactions is up to 0.1 s old. Raises TimeoutError when some are
        still there after a minute.
        """
        idle = "command = 'Sleep' and id not in (select trx_mysql_thread_id from information_schema.innodb_trx)"
        ended = [number for number in ids or self._backends(idle) if self._kill(number)]
        # A connection leaves the list after its socket was closed (sql_connect.cc: close_connection, unlink_thd).
        wait_until(lambda: not set(ended) & self._listed(), timeout=60.0, what=f"the end of {ended}", interval=0.002)
        return len(ended)

    def _kill(self, number: int) -> bool:
        try:
            self.query("kill %s", number)
        except pymysql.OperationalError as error:
            if error.args[0] == ER.NO_SUCH_THREAD:
                return False
            raise
        return True

    def _listed(self) -> set[int]:
        return {number for (number,) in self.query("select id from information_schema.processlist")}

    def _backends(self, condition: str) -> list[int]:
        rows = self.query(
            "select id from information_schema.processlist where user not in"
            f" ('system user', 'event_scheduler', 'unauthenticated user', '{ADMIN}') and {condition} order by id"
        )
        return [number for (number,) in rows]

    # The data directory

    def _options(self) -> list[str]:
        options = {**self.settings, "datadir": str(self.directory), "tmpdir": str(self._private)}
        return ["--no-defaults", *(f"--{name}={value}" for name, value in options.items())]

    def _launch(self) -> Child:
        options = {
            "bind_address": self.host,
            "port": str(self.port),
            "socket": str(self.socket),
            "pid_file": str(self._private / "mariadb.pid"),
        }
        if self.tls:
            options |= {"ssl_cert": str(self.certificate), "ssl_key": str(self._key)}
        return self._run(self._program, *self._options(), *(f"--{name}={value}" for name, value in options.items()))

    def _configure(self) -> None:
        if self.tls:
            self._certify()
        if not (self.directory / "mysql").exists():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._give(self.directory)
            fill(self.directory, (self.name, tuple(self.settings.items())), self._bootstrap)

    def _bootstrap(self) -> None:
        """What mariadb-install-db does, which needs the client's package, less the 2.5 MB of help texts."""
        share = self._program.parent.parent / "share" / "mysql"
        tables = [(share / name).read_text() for name in _TABLES]
        sql = "\n".join(["create database mysql;", "use mysql;", "set @auth_root_socket = null;", *tables, _ACCOUNTS])
        script = self._write("bootstrap.sql", sql)
        with self._run(self._program, *self._options(), "--bootstrap", stdin=script) as bootstrap:
            if bootstrap.wait(120.0):
                raise RuntimeError(f"mariadbd --bootstrap failed:\n{bootstrap.output(last=20)}")

    # The admin's connection

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except (OSError, pymysql.OperationalError):
            return False
        return True

    def _connect(self) -> pymysql.Connection[Any]:
        connection = pymysql.connect(
            user=ADMIN,
            database=NAME,
            autocommit=True,
            # Not what a test gives the server for its clients: the admin stays.
            init_command=f"set session wait_timeout = {_LONGEST}",
            ssl_disabled=True,  # a Unix socket needs none, and PyMySQL would read all authorities of the system first
            defer_connect=True,
        )
        # Ours, as PyMySQL leaves its own open when nobody listens.
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.socket))
        except OSError:
            sock.close()
            raise
        connection.connect(sock)
        return connection
