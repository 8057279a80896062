"""An engine for each way in which people keep pooled connections alive: what the guard is measured beside.

By their names, which are those in every table and plot: nothing at all; SQLAlchemy's own `pool_pre_ping`,
`pool_recycle` and `NullPool`; a ping at the first checkout of each request, as Django's CONN_HEALTH_CHECKS has it;
psycopg_pool with its `check`, and DBUtils' PooledDB with a ping, both in the place of SQLAlchemy's pool; the guard. All
of them have the same limits. What they need is imported when it is asked for, so that no other contender pays for it.

`FLOOR` is none of them. It guards nothing: a middleware that opens a scope for each request and closes it with the
response, and a listener that polls at each checkout. Whatever does the guard's work does at least that.

Example::

    engine = make_engine("pool_pre_ping", "postgresql+psycopg://app@127.0.0.1:5432/app")
    application = wrap("pool_pre_ping", application, engine)

Imported by its bare name, like everything here: see echo.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from unittest import mock

# Most applications have the ORM, and the guard imports it: not to be counted as a contender's.
import sqlalchemy.orm  # noqa: F401
from sqlalchemy import Engine, NullPool, QueuePool, create_engine, event, exc

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["CONTENDERS", "FLOOR", "make_engine", "polling", "wrap"]

RECYCLE = 3600  # seconds, as the recipes have it
OVERFLOW = 10  # SQLAlchemy's default

CONTENDERS = (
    "nothing",
    "pool_pre_ping",
    "pool_recycle",
    "NullPool",
    "ping per request",
    "psycopg_pool",
    "PooledDB",
    "guard",
)
FLOOR = "floor"


class _ApartPool(QueuePool):
    """Of listeners to the class `Pool` it hears nothing: where the guard is in this process, another contender does not
    pay for its."""

    _sa_propagate_class_events = False


class _ApartNullPool(NullPool):
    _sa_propagate_class_events = False


def make_engine(contender: str, url: str, *, size: int = 5) -> Engine:
    """An engine of that contender, with `size` kept connections. `wrap` does what is to be done for a request.

    Raises ValueError for a contender that cannot be had with this driver.
    """
    match contender:
        case "pool_pre_ping":
            return create_engine(url, poolclass=_ApartPool, pool_size=size, pool_pre_ping=True)
        case "pool_recycle":
            return create_engine(url, poolclass=_ApartPool, pool_size=size, pool_recycle=RECYCLE)
        case "NullPool":
            return create_engine(url, poolclass=_ApartNullPool)
        case "psycopg_pool":
            return _psycopg_pool(url, size)
        case "PooledDB":
            return _pooled_db(url, size)
        case "nothing" | "ping per request":
            return create_engine(url, poolclass=_ApartPool, pool_size=size)
        case "guard":
            return create_engine(url, pool_size=size)
        case "floor":
            return polling(create_engine(url, poolclass=_ApartPool, pool_size=size))
    raise ValueError(f"{contender!r} is none of {', '.join(CONTENDERS)}")


def wrap(contender: str, application: WSGIApplication, engine: Engine) -> WSGIApplication:
    """The application as that contender wants it to be served."""
    if contender == "ping per request":
        return _PingPerRequest(application, engine)
    if contender == "guard":
        from wsgi_dbguard import DBGuard

        return DBGuard(application, engine)
    if contender == FLOOR:
        return _scoping(application)
    return application


class _PingPerRequest:
    """The first checkout of a request asks the server; Django has one connection for a thread, here it is any."""

    def __init__(self, application: WSGIApplication, engine: Engine) -> None:
        self._application = application
        self._dialect = engine.dialect
        self._due: ContextVar[bool] = ContextVar("due", default=False)
        event.listen(engine, "checkout", self._checkout)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self._due.set(True)
        return self._application(environ, start_response)

    def _checkout(self, connection: Any, entry: Any, proxy: Any) -> None:
        if not self._due.get():
            return
        try:
            self._dialect.do_ping(connection)
        except Exception as error:
            raise exc.DisconnectionError from error
        self._due.set(False)


def polling(engine: Engine) -> Engine:
    """`engine`, with one poll at each checkout."""
    from wsgi_dbguard import sockets

    def connected(connection: Any, entry: Any) -> None:
        fd = sockets.fileno(connection)
        assert fd is not None
        entry.info["look"] = sockets.watch(fd)

    def look(connection: Any, entry: Any, proxy: Any) -> None:
        entry.info["look"]()

    event.listen(engine, "connect", connected)
    event.listen(engine, "checkout", look)
    return engine


_scope: ContextVar[object] = ContextVar("scope")


def _scoping(application: WSGIApplication) -> WSGIApplication:
    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        token = _scope.set(environ)
        try:
            body = application(environ, start_response)
        finally:
            _scope.reset(token)
        return body if type(body) is list else _Scope(body)

    return middleware


class _Scope:
    """A response whose every step, and close, are within the scope."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._iterator = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = _scope.set(self)
        try:
            return next(self._iterator)
        finally:
            _scope.reset(token)

    def close(self) -> None:
        token = _scope.set(self)
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            _scope.reset(token)


def _psycopg_pool(url: str, size: int) -> Engine:
    from psycopg_pool import ConnectionPool

    plain = create_engine(url, poolclass=NullPool)
    if plain.dialect.driver != "psycopg":
        raise ValueError("psycopg_pool is for psycopg")
    _, arguments = plain.dialect.create_connect_args(plain.url)
    pool = ConnectionPool(
        kwargs=dict(arguments),
        min_size=1,
        max_size=size + OVERFLOW,
        check=ConnectionPool.check_connection,
        configure=_set_up(plain),
        close_returns=True,
        open=True,
    )
    return _on_top(url, pool, pool.getconn)


def _pooled_db(url: str, size: int) -> Engine:
    from dbutils.pooled_db import PooledDB
    from dbutils.steady_db import SteadyDBConnection

    class Connection(SteadyDBConnection):  # type: ignore[misc]
        def __getattr__(self, name: str) -> Any:
            # SQLAlchemy's dialects want more of the driver's connection than DB-API has.
            return getattr(self.__dict__["_con"], name)

    class Pool(PooledDB):  # type: ignore[misc]
        def steady_connection(self) -> Connection:
            return Connection(self._creator, ping=self._ping)

    plain = create_engine(url, poolclass=NullPool)
    _, arguments = plain.dialect.create_connect_args(plain.url)
    dbapi = plain.dialect.loaded_dbapi
    set_up = _set_up(plain)

    def connect() -> Any:
        connection = dbapi.connect(**arguments)
        set_up(connection)
        return connection

    connect.dbapi = dbapi  # type: ignore[attr-defined]
    connect.threadsafety = 1  # type: ignore[attr-defined]
    # SQLAlchemy's ping, since that of PooledDB's own would begin a transaction; and it is SQLAlchemy that rolls back.
    pool = Pool(
        connect,
        maxcached=size,
        maxconnections=size + OVERFLOW,
        blocking=True,
        ping=plain.dialect.do_ping,
        reset=False,
    )
    # psycopg looks for the type's number with a connection that has to be its own.
    options = {"use_native_hstore": False} if plain.dialect.driver == "psycopg" else {}
    return _on_top(url, pool, lambda: pool.connection(shareable=False), **options)


def _set_up(plain: Engine) -> Callable[[Any], None]:
    """What SQLAlchemy does to each new connection."""
    return plain.dialect.on_connect_url(plain.url) or (lambda connection: None)


def _on_top(url: str, pool: Any, connect: Callable[[], Any], **options: Any) -> Engine:
    """An engine without a pool that takes its connections, set up already, from another pool; disposed with it."""
    dialect = type(create_engine(url).dialect)
    with mock.patch.object(dialect, "on_connect_url", return_value=None):
        engine = create_engine(url, creator=connect, poolclass=_ApartNullPool, **options)
    event.listen(engine, "engine_disposed", lambda engine: pool.close())
    return engine
