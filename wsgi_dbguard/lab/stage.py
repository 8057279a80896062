"""Where a fault is played: a server, a proxy in front of it, and pools of all drivers and contenders behind that.

All pools meet the same fault at the same moment, so what differs between their outcomes is the driver and the contender
alone.

Example::

    with Stage(server, "postgresql") as stage:
        stage.open([driver_named("psycopg")])
        server.restart()
        for pool in stage.pools:
            pool.ask("token")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar, cast

from sqlalchemy import URL, make_url

from .contenders import SIZE, Address, Contender, Pool
from .drivers import Database, Driver
from .haproxy import HAProxy
from .network import SilentDrop, available
from .pgbouncer import PgBouncer
from .postgres import PostgreSQL
from .process import wait_until
from .provision import ServerMissing
from .proxy import FaultProxy
from .server import NAME, DatabaseServer

__all__ = ["DIALECTS", "PASSWORD", "USER", "Dialect", "Server", "Stage", "Way"]

USER, PASSWORD = "app", "first"
_POOLER = {"default_pool_size": "100"}  # in session mode every connection of every pool has a backend of its own
W = TypeVar("W", bound="Way")


class Way(Protocol):
    """Something that leads to the server."""

    host: str
    port: int


class Server(Way, Protocol):
    """What the lab's PostgreSQL and MariaDB have in common."""

    def start(self) -> None: ...
    def restart(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def url_through(self, host: str | Path, port: int) -> str: ...
    def query(self, sql: str, *args: object) -> list[tuple[Any, ...]]: ...
    def terminate(self, *pids: int) -> int: ...


@dataclass(frozen=True)
class Dialect:
    """What is said differently to the two kinds of server."""

    setup: tuple[str, ...]
    backend: str  # the id of the connection's own backend
    backends: str  # of the application's
    sleep: str
    asleep: str  # the ids of those that are in `sleep`


DIALECTS: dict[Database, Dialect] = {
    "postgresql": Dialect(
        setup=(
            f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'",
            "CREATE TABLE written (token varchar(36))",
            f"GRANT ALL ON written TO {USER}",
        ),
        backend="SELECT pg_backend_pid()",
        backends=f"SELECT pid FROM pg_stat_activity WHERE usename = '{USER}'",
        sleep="SELECT pg_sleep(30)",
        asleep="SELECT pid FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'",
    ),
    "mariadb": Dialect(
        setup=(
            f"CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'",
            "CREATE TABLE written (token varchar(36))",
            f"GRANT SELECT, INSERT ON *.* TO {USER}@'%'",
        ),
        backend="SELECT CONNECTION_ID()",
        backends=f"SELECT id FROM information_schema.processlist WHERE user = '{USER}'",
        sleep="SELECT SLEEP(30)",
        asleep=f"SELECT id FROM information_schema.processlist WHERE user = '{USER}' AND state = 'User sleep'",
    ),
}


class Stage:
    """A running `server`, with a proxy of the stage's own in front of it; `spare` starts a second server of its kind.

    Raises RuntimeError when `spare` is needed and was not given.
    """

    def __init__(self, server: Server, database: Database, *, spare: Callable[[], Server] | None = None) -> None:
        self.server = server
        self.database: Database = database
        self.dialect = DIALECTS[database]
        self.pools: list[Pool] = []
        self.victims: list[int] = []  # backends whose connection is in use at the fault's moment
        self._make_spare = spare
        self._spare: Server | None = None
        self._ways: dict[str, Way] = {}
        self._timers: list[threading.Timer] = []
        self._stack = ExitStack()
        self._play = ExitStack()
        self.proxy = FaultProxy(server.host, server.port)
        self.detour = FaultProxy(server.host, server.port)
        self.address: Address = ("", 0)  # where new connections go: what DNS says
        self.user = USER
        for statement in self.dialect.setup:
            server.query(statement)

    def __enter__(self) -> Self:
        for proxy in (self.proxy, self.detour):
            self._stack.enter_context(proxy)
        self.reset()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._stack.close()

    @property
    def spare(self) -> Server:
        """The second server, started at the first use, with the same user and table; it belongs to who gave it."""
        if self._spare is None:
            if self._make_spare is None:
                raise RuntimeError("this stage has no second server")
            self._spare = self._make_spare()
            for statement in self.dialect.setup:
                self._spare.query(statement)
        return self._spare

    @property
    def link(self) -> SilentDrop:
        """A way to the server on which packets can vanish. Raises ServerMissing where there can be none."""
        if reason := available():
            raise ServerMissing(reason)
        return self._way("link", lambda: SilentDrop(self.server.host, self.server.port))

    def pooler(self, mode: Literal["transaction", "session"]) -> PgBouncer:
        """PgBouncer in front of the server. Raises ServerMissing."""
        assert isinstance(self.server, PostgreSQL)
        server = self.server
        return self._way(f"pooler, {mode}", lambda: PgBouncer(server, mode=mode, settings=_POOLER))

    @property
    def balancer(self) -> HAProxy:
        """HAProxy in front of the server. Raises ServerMissing."""
        assert isinstance(self.server, DatabaseServer)
        server = self.server
        return self._way("balancer", lambda: HAProxy(server))

    def _way(self, name: str, make: Callable[[], AbstractContextManager[W]]) -> W:
        """A way to the server, started at its first use."""
        if name not in self._ways:
            self._ways[name] = self._stack.enter_context(make())
        return cast(W, self._ways[name])

    def go_by(self, way: Way) -> None:
        """Have new connections go that way, until reset()."""
        self.address = way.host, way.port
        self.user = NAME if isinstance(way, PgBouncer) else USER  # it knows nobody else

    @property
    def url(self) -> URL:
        """Of the server, by the way that connections go now, for the application's user."""
        return make_url(self.server.url_through(*self.address)).set(username=self.user, password=PASSWORD)

    def reset(self) -> None:
        """The network as it should be, and nothing left of what went through it before."""
        self.go_by(self.proxy)
        for way in (self.proxy, *self._ways.values()):
            if isinstance(way, FaultProxy):
                way.up()
                way.reset()

    def open(
        self,
        drivers: Iterable[Driver],
        contenders: Iterable[Contender] = Contender,
        *,
        arguments: Callable[[Driver], Mapping[str, Any]] = lambda driver: {},
        **keywords: Any,
    ) -> None:
        """Make a pool for each driver and contender, each with all its connections open and none of them in use."""
        for driver in drivers:
            for contender in contenders:
                dial = self._dial
                pool = Pool(driver, contender, self.url, dial=dial, arguments=arguments(driver), **keywords)
                self.pools.append(pool)
                pool.with_all(lambda connection: None)

    def _dial(self) -> Address:
        return self.address

    def close(self) -> None:
        """Close all pools; a connection that hangs is cut first."""
        for timer in self._timers:
            timer.join()
        self._play.close()
        for pool in self.pools:
            pool.cut()
            pool.close()
        self.pools.clear()
        self._timers.clear()
        self.victims.clear()

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something while the requests run."""
        timer = threading.Timer(seconds, act)
        timer.start()
        self._timers.append(timer)

    def backends(self) -> list[int]:
        """The server's ids of all the application's connections."""
        return [pid for (pid,) in self.server.query(self.dialect.backends)]

    def asleep(self) -> set[int]:
        """The server's ids of connections that are in the middle of a query that sleeps."""
        return {pid for (pid,) in self.server.query(self.dialect.asleep)}

    def wait_for_end(self, each: int = SIZE, timeout: float = 60.0) -> None:
        """Wait until the end of `each` connections of every pool has come to the clients."""
        known = [pool for pool in self.pools if pool.known]
        what = f"the end of {each} connections of each pool"
        wait_until(lambda: all(pool.ended >= each for pool in known), timeout=timeout, what=what, interval=0.02)

    def wait_for_news(self, timeout: float = 60.0) -> None:
        """Wait until something has arrived on every connection that lies in a pool."""
        known = [pool for pool in self.pools if pool.known]
        wait_until(lambda: all(pool.news >= SIZE for pool in known), timeout=timeout, what="news", interval=0.02)

    def while_playing(self, context: AbstractContextManager[object]) -> None:
        """Enter a context, and leave it when the pools are closed."""
        self._play.enter_context(context)

    def on_each(self, statement: str) -> None:
        """Run a statement on every connection of every pool."""
        for pool in self.pools:
            pool.with_all(lambda connection: connection.exec_driver_sql(statement))
