"""The servers of deploy/replicas, started from its very files: PgBouncer and HAProxy before a primary and two replicas.

Only addresses, ports and users are changed, to private ones.

Example::

    with Topology() as topology:
        environment = topology.environment         # what deploy/replicas/wsgi.py reads
        topology.standbys[0].stop()
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from wsgi_dbguard.cli.config import deploy_directory

from .postgres import PostgreSQL
from .process import Child, wait_until
from .provision import ServerMissing, program
from .replication import Standby
from .server import NAME, PrivateServer

__all__ = ["ServerMissing", "Topology"]

PATIENCE = 60.0  # seconds, for what takes milliseconds on a machine that is not busy


def _changed(path: Path, changes: dict[str, str]) -> str:
    """The text of a file, with other addresses. Raises ValueError for one that is not in it."""
    text = path.read_text()
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{path} has no {old!r}")
        text = text.replace(old, new)
    return text


class _HAProxy(PrivateServer):
    name = "HAProxy"

    def __init__(self, servers: Sequence[PostgreSQL]) -> None:
        self._program = program("haproxy", package="haproxy")
        self._servers = servers
        self._more: list[socket.socket] = []
        super().__init__()
        # As the base class holds its port.
        for _ in servers[1:]:
            reservation = socket.socket()
            self._more.append(reservation)
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reservation.bind((self.host, 0))

    @property
    def ports(self) -> list[int]:
        """Of the primary, and of each replica."""
        return [self.port, *(each.getsockname()[1] for each in self._more)]

    def close(self) -> None:
        super().close()
        for each in self._more:
            each.close()

    def _configure(self) -> None:
        changes = {"    user haproxy\n    group haproxy\n": ""}
        for number, (port, server) in enumerate(zip(self.ports, self._servers, strict=True)):
            changes[f"bind 127.0.0.1:{5000 + number}\n"] = f"bind {self.host}:{port}\n"
            changes[f"10.0.0.{11 + number}:5432"] = f"{server.host}:{server.port}"
        self._write("haproxy.cfg", _changed(deploy_directory() / "replicas" / "haproxy.cfg", changes))

    def _launch(self) -> Child:
        return self._run(self._program, "-db", "-f", self._private / "haproxy.cfg")


class _PgBouncer(PrivateServer):
    name = "PgBouncer"

    def __init__(self, port: int) -> None:
        self._program = program("pgbouncer", package="pgbouncer")
        self._behind = port
        super().__init__()

    def _configure(self) -> None:
        users = self._write("users.txt", f'"{NAME}" ""\n')
        changes = {
            "notes = host=127.0.0.1 port=5000 dbname=notes": f"{NAME} = host={self.host} port={self._behind}",
            "listen_port = 6432": f"listen_port = {self.port}",
            "auth_type = scram-sha-256": "auth_type = trust",
            "auth_file = /etc/pgbouncer/userlist.txt": f"auth_file = {users}",
        }
        self._write("pgbouncer.ini", _changed(deploy_directory() / "replicas" / "pgbouncer.ini", changes))

    def _launch(self) -> Child:
        return self._run(self._program, self._private / "pgbouncer.ini")


class Topology:
    """The five servers, running in its `with` block. Raises ServerMissing when one is not installed."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            settings = {"wal_receiver_status_interval": "1", "wal_retrieve_retry_interval": "200ms"}
            self.primary = stack.enter_context(PostgreSQL(settings=settings))
            self.primary.query("create role haproxy login")  # as whom HAProxy checks
            self.standbys = [stack.enter_context(Standby(self.primary, settings=settings)) for _ in range(2)]
            self.haproxy = stack.enter_context(_HAProxy([self.primary, *self.standbys]))
            self.pgbouncer = stack.enter_context(_PgBouncer(self.haproxy.port))
            self.caught_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """PRIMARY_URL and REPLICA_URLS, as the application wants them."""
        _, *ports = self.haproxy.ports
        url = self.primary.url_through
        return {
            "PRIMARY_URL": url(self.pgbouncer.host, self.pgbouncer.port, "psycopg2"),
            "REPLICA_URLS": " ".join(url(self.haproxy.host, port, "psycopg2") for port in ports),
        }

    def pause_replay(self) -> None:
        """What is committed from now on is not seen on any replica that runs."""
        for each in self.standbys:
            if each.running:
                each.query("select pg_wal_replay_pause()")

    def resume_replay(self) -> None:
        """Undo `pause_replay()`."""
        for each in self.standbys:
            if each.running:
                each.query("select pg_wal_replay_resume()")

    def caught_up(self) -> None:
        """Wait until all that was committed so far is seen on the replicas. Raises TimeoutError."""
        ((position,),) = self.primary.query("select pg_current_wal_flush_lsn()::text")
        done = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
        for each in self.standbys:
            wait_until(
                lambda each=each: each.query(done, position)[0][0],  # type: ignore[misc]
                timeout=PATIENCE,
                what=f"{position} on {each!r}",
            )
