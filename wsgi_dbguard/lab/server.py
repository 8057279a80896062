"""What all private servers of the lab have in common: a port, a directory, a process, and an end without a trace.

`PrivateServer` is any program that serves on a port of 127.0.0.1: PgBouncer, HAProxy. `DatabaseServer` is one that
holds data and answers `query()`: PostgreSQL, MariaDB. Only `wsgi_dbguard.lab` derives from them; everybody else uses
the servers.

Example, all that HAProxy is::

    class HAProxy(PrivateServer):
        name = "HAProxy"

        def _configure(self) -> None:
            self._write("haproxy.cfg", "…")

        def _launch(self) -> Child:
            return self._run("/usr/sbin/haproxy", "-db", "-f", self._private / "haproxy.cfg")
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from wsgi_dbguard.sockets import DEAD, fileno, happened

from .process import Child, keep, remove_at_death, wait_until
from .provision import private_directory, self_signed, unprivileged

__all__ = ["NAME", "DatabaseServer", "PrivateServer"]

NAME = "dbguard"  # of the user and of the database


class PrivateServer(ABC):
    """A program that serves on a port of its own, not started yet.

    `host`, `port`: where, the same for as long as the object lives; `log`: the file with its output.
    """

    host = "127.0.0.1"
    name: ClassVar[str]
    # The fastest orderly end, also for when nobody is there to call close().
    _fastest: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self._account = unprivileged()
        self._owner = os.getpid()
        self._child: Child | None = None
        # Bound for as long as this object lives, never listening: so nobody else is given the port while the server is
        # down, and no client that retries then can connect to itself. The server may listen on it all the same, as
        # both sides set SO_REUSEADDR (socket(7)).
        self._reservation = socket.socket()
        self._private = private_directory(self._account)
        remove_at_death(self._private)
        atexit.register(self.close)
        self.log = self._private / "server.log"
        with self._closed_on_error():
            self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reservation.bind((self.host, 0))
            self.port: int = self._reservation.getsockname()[1]

    def __repr__(self) -> str:
        return f"<{self.name} {self.host}:{self.port} {'running' if self.running else 'stopped'}>"

    def __enter__(self) -> Self:
        with self._closed_on_error():
            self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether its process runs, be it paused."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """Process id of the server. Raises RuntimeError when it does not run."""
        if self._child is None or not self.running:
            raise RuntimeError(f"{self!r} has no process")
        return self._child.pid

    def start(self, *, timeout: float = 60.0) -> None:
        """Start the server and return once it serves; nothing when it runs.

        Raises RuntimeError with the end of the server's log when it ends instead, TimeoutError after `timeout` seconds.
        """
        if self._reservation.fileno() < 0:
            raise RuntimeError(f"{self!r} is closed")
        if self.running:
            return
        self._configure()
        self._child = self._launch()
        try:
            wait_until(self._served, timeout=timeout, what=f"{self!r} to serve")
        except BaseException:
            self._child.stop()
            raise

    def stop(self, *, timeout: float = 30.0) -> None:
        """End the server in order, its clients' connections with it; nothing when it does not run.

        Raises TimeoutError when the server, still shutting down, needs more than `timeout` seconds.
        """
        self._end(signal.SIGTERM, timeout)

    def restart(self) -> None:
        """`stop()` and `start()`."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL all its processes at once, as a power cut would; `start()` recovers."""
        if self._child is not None and self.running:
            self._child.kill()

    def pause(self) -> None:
        """SIGSTOP all its processes: connections stay open and connects succeed, but nothing answers."""
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        """Undo `pause()`."""
        if self._child is not None:
            self._child.resume()

    def close(self) -> None:
        """End the server the fastest way, free the port, remove what is private. Does nothing the second time.

        Nor in a process forked from the owner, which leaves the same `with` blocks and runs the same exit handlers.
        """
        if os.getpid() != self._owner or self._reservation.fileno() < 0:
            return
        try:
            self._end(self._fastest, 10.0)
        except TimeoutError:
            self.kill()
        self._reservation.close()
        shutil.rmtree(self._private, ignore_errors=True)
        keep(self._private)
        atexit.unregister(self.close)

    # For servers to define

    @abstractmethod
    def _launch(self) -> Child:
        """Start the process."""

    @abstractmethod
    def _configure(self) -> None:
        """Write what the process reads, before each start."""

    def _answers(self) -> bool:
        """Whether it takes connections."""
        # Not by connecting: what is behind a proxy would get a client that says nothing. proc_pid_net(5); 0A is LISTEN.
        address = f"{int.from_bytes(socket.inet_aton(self.host), sys.byteorder):08X}:{self.port:04X}"
        sockets = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
        return any(local == address and state == "0A" for _, local, _, state, *_ in sockets)

    # For servers to use

    def _end(self, number: signal.Signals, timeout: float) -> None:
        if self._child is None or not self.running:
            return
        self._child.send(number)
        self._child.resume()
        self._child.wait(timeout)

    def _run(self, program: str | Path, *argv: str | Path, stdin: Path | None = None) -> Child:
        return Child(
            [program, *argv],
            log=self.log,
            stdin=stdin,
            # Not ours: PGDATA, PGPORT, MYSQL_HOME and their like would be obeyed.
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            cwd=self._private,
            user=self._account.pw_uid if self._account else None,
            group=self._account.pw_gid if self._account else None,
            stop_signal=self._fastest,
        )

    def _served(self) -> bool:
        """Whether it takes connections. Raises RuntimeError when it ended."""
        child = self._child
        if child is None or not self.running:
            tail = child.output(last=20) if child and child.log.exists() else "it was not started"
            raise RuntimeError(f"{self!r} does not run:\n{tail}")
        return self._answers()

    def _write(self, path: Path | str, text: str) -> Path:
        """Write a file for the server to read, by default a private one; returns where it is."""
        place = self._private / path
        place.write_text(text)
        self._give(place)
        return place

    def _give(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)


class _Connection(Protocol):
    def cursor(self) -> Any: ...

    def close(self) -> None: ...


class DatabaseServer(PrivateServer):
    """A server that holds a database, `dbguard`, of the user `dbguard`, who needs no password.

    `settings`: more of the server's own; `tls`: with a self-signed certificate for 127.0.0.1 and localhost, in the file
    `certificate` (plain connections are served too); `directory`: where the data live and stay; by default a new one
    that `close()` removes. As root, `nobody` must be able to reach it.
    """

    version: str

    def __init__(self, settings: Mapping[str, str], *, tls: bool, directory: Path | None) -> None:
        self._admin: tuple[int, _Connection] | None = None
        self._lock = threading.Lock()
        super().__init__()
        self.settings = dict(settings)
        self.tls = tls
        self.directory = directory.resolve() if directory else self._private / "data"
        self.socket_directory = self._private
        self.certificate = self._private / "server.crt"
        self._key = self._private / "server.key"

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<{self.name} {self.version} {self.host}:{self.port} {state}>"

    def kill(self) -> None:
        super().kill()
        self._leave()

    def _end(self, number: signal.Signals, timeout: float) -> None:
        super()._end(number, timeout)
        self._leave()  # not earlier: another thread may wait in query(), for a paused server for one

    @abstractmethod
    def url_through(self, host: str | Path, port: int, driver: str, **query: str) -> str:
        """A SQLAlchemy URL of the server at another address: of a proxy, or with a path as `host` of a Unix socket."""

    @abstractmethod
    def backends(self) -> list[int]:
        """Ids of client connections in the server, oldest first; the admin's left out."""

    @abstractmethod
    def terminate(self, *ids: int) -> int:
        """End these, or with none every idle one but the admin's; returns how many, once they are gone."""

    def query(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, in autocommit, and return its rows, if any.

        `args` fill its %s. The connection is the server's own, over its Unix socket, out of reach of proxies and pools
        alike, and is opened anew after a restart. Raises the driver's errors, RuntimeError when the server is stopped.
        """
        with self._lock:
            cursor = self._administrator().cursor()
            try:
                cursor.execute(sql, args or None)
                return list(cursor.fetchall()) if cursor.description else []
            finally:
                cursor.close()

    @abstractmethod
    def _connect(self) -> _Connection:
        """A new connection of the admin."""

    def _administrator(self) -> _Connection:
        if self._admin is not None:
            owner, connection = self._admin
            # A child's copy of its parent's connection is left alone: neither driver sends anything when collected.
            if owner == os.getpid():
                fd = fileno(connection)
                if fd is not None and not happened(fd) & DEAD:
                    return connection
                connection.close()
            self._admin = None
        # A server that lost a backend to a signal refuses connections until it has recovered.
        wait_until(self._served, timeout=60.0, what=f"{self!r} to serve")
        self._admin = os.getpid(), self._connect()
        return self._admin[1]

    def _leave(self) -> None:
        with self._lock:
            if self._admin is not None and self._admin[0] == os.getpid():
                self._admin[1].close()
            self._admin = None

    def _certify(self) -> None:
        """Make the certificate and its key, once."""
        if not self._key.exists():
            self_signed(self.certificate, self._key)
            self._give(self._key)
            self._give(self.certificate)
