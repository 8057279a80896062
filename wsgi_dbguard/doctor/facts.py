"""What was observed, as plain data: made in the process that imports the application, sent as JSON, judged elsewhere.

No field holds a password: URLs are rendered without. Places are text, ``file:line in function``. Durations are float
seconds; None is "not set" or "not known", as each class says.

Example::

    app = decode(AppFacts, json.loads(line))
    encode(app)["engines"][0]["url"]
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = [
    "AppFacts",
    "DatabaseFacts",
    "EngineFacts",
    "Facts",
    "MakerFacts",
    "OpenedFacts",
    "ServerFacts",
    "SessionFacts",
    "decode",
    "encode",
]

T = TypeVar("T")


@dataclass(kw_only=True)
class EngineFacts:
    """One engine. `number` is its name in the other facts; a limit that is None does not exist or is not known."""

    number: int
    url: str
    dialect: str
    driver: str
    server: str  # host:port or the socket's path, by the URL: engines of the same server share its limits
    made_at: str
    is_async: bool = False
    pool: str = "QueuePool"
    pool_size: int | None = 5
    max_overflow: int | None = 10  # -1: without bound
    pool_timeout: float | None = 30.0
    recycle: float | None = None
    pre_ping: bool = False
    resets: bool = True  # connections are rolled back when they come home
    autocommit_argument: str = ""  # of the URL
    guard: dict[str, Any] | None = None  # the settings of its `PoolGuard`, None without one

    @property
    def keeps(self) -> bool:
        """Whether connections stay open between two uses."""
        return self.pool not in ("NullPool", "StaticPool", "SingletonThreadPool")

    @property
    def has_server(self) -> bool:
        """Whether there is a database server at the other end."""
        return self.dialect != "sqlite"

    @property
    def can_ask(self) -> bool:
        """Whether doctor knows what to ask that server, and how."""
        return self.dialect in ("postgresql", "mysql", "mariadb") and not self.is_async

    @property
    def limit(self) -> int | None:
        """The most connections that one process has at once; None without bound."""
        if self.pool in ("StaticPool", "AssertionPool"):
            return 1
        if self.pool != "QueuePool" or not self.pool_size or self.max_overflow is None or self.max_overflow < 0:
            return None
        return self.pool_size + self.max_overflow


@dataclass(kw_only=True)
class OpenedFacts:
    """A connection that was open when the application had been imported."""

    engine: int | None
    place: str
    in_use: bool = False


@dataclass(kw_only=True)
class SessionFacts:
    """A Session that outlived the import and belongs to no thread. `name`: module and variable, where there is one."""

    made_at: str
    name: str = ""
    in_transaction: bool = False
    left_over: bool = False  # closed at import, and no function names it


@dataclass(kw_only=True)
class MakerFacts:
    """A sessionmaker. `splits`: its class has a `get_bind` of its own; `routed`: it is a `RoutingSession`."""

    made_at: str
    class_name: str = "sqlalchemy.orm.Session"
    splits: bool = False
    routed: bool = False
    expires: bool = True


@dataclass(kw_only=True)
class AppFacts:
    """The application after its import. `guard`: settings of the `DBGuard` around or inside it, None without one."""

    target: str
    kind: str = "function"
    guard: dict[str, Any] | None = None
    engines: list[EngineFacts] = field(default_factory=list)
    opened: list[OpenedFacts] = field(default_factory=list)
    sessions: list[SessionFacts] = field(default_factory=list)
    makers: list[MakerFacts] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)  # started at import, and running
    versioned: int = 0  # mapped classes with a version_id_col
    forks_noticed: str = ""  # hooks of its own that run after a fork: "", "hook", or "cut" if it cuts engines off
    stale_at: list[str] = field(default_factory=list)  # lines of the application that name StaleDataError


@dataclass(kw_only=True)
class ServerFacts:
    """The server's configuration. `timeout` is what ends a request that waits, None where nothing does."""

    name: str  # gunicorn, uwsgi
    file: str
    version: str = ""
    target: str = ""
    processes: int = 1
    threads: int = 1  # requests at once in a process
    worker: str = ""  # gunicorn's worker class
    preloads: bool = False  # the application is imported before the workers are forked
    hooks: bool = False  # ours are named in it
    post_fork: str = ""  # a hook of the configuration's own: "", "hook", or "cut" if it cuts engines off
    enable_threads: bool | None = None  # uWSGI; None where the file says nothing
    timeout: float | None = None
    timeout_name: str = ""


@dataclass(kw_only=True)
class DatabaseFacts:
    """What the server behind one engine said. `error`: why it was not asked, or what failed."""

    engine: int
    error: str = ""
    version: str = ""
    max_connections: int | None = None
    reserved: int = 0
    idle_limit: float | None = None  # after which an idle connection is closed
    idle_limit_name: str = ""
    transaction_limit: float | None = None  # the same in an open transaction
    standby: bool = False
    autocommit: bool = False
    tls: bool | None = None
    remote: bool | None = None
    pooler: str = ""  # transaction or session: the mode of the PgBouncer, or the like, that is in between
    prepares: bool = False  # the driver makes server-side prepared statements by itself
    prepared_fails: bool = False  # one that was made in a transaction was not there in the next: it was tried


@dataclass(kw_only=True)
class Facts:
    """All that the checks are given. `unseen`: what could not be looked at, in words."""

    app: AppFacts
    server: ServerFacts | None = None
    databases: list[DatabaseFacts] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def database(self, engine: EngineFacts) -> DatabaseFacts | None:
        """What the server behind `engine` said; None where it said nothing."""
        return next((each for each in self.databases if each.engine == engine.number and not each.error), None)


def encode(facts: Any) -> dict[str, Any]:
    """A facts object as what JSON can hold."""
    return asdict(facts)


def decode(cls: type[T], values: dict[str, Any]) -> T:
    """The object of class `cls` that `encode` had made `values` of. Raises TypeError for others."""
    hints = get_type_hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    if get_origin(hint) is list and is_dataclass(item := get_args(hint)[0]):
        return [decode(item, each) for each in value]  # type: ignore[arg-type]
    if isinstance(value, dict):
        for each in (hint, *get_args(hint)):  # of X | None the X
            if isinstance(each, type) and is_dataclass(each):
                return decode(each, value)
    return value
