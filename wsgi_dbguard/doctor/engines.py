"""An engine, described. Part of the process that imports the application."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_plus

from sqlalchemy import URL, Engine

from wsgi_dbguard import guards
from wsgi_dbguard.config import GuardConfig

from .facts import EngineFacts
from .secrets import HIDDEN, Secrets, is_secret, passwords_in

__all__ = ["describe", "settings"]

_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_ON = ("1", "true", "on", "yes", "autocommit")
_SETTINGS = ("hold", "deadline", "max_lifetime", "idle_timeout", "leaks", "ping_after")


def describe(engine: Engine, number: int, made_at: str) -> EngineFacts:
    """What the checks want to know of `engine`."""
    pool: Any = engine.pool
    # The pool tells its size in public; the rest has private names, and may be None one day.
    recycle = getattr(pool, "_recycle", None)
    return EngineFacts(
        number=number,
        url=_shown(engine.url),
        dialect=engine.dialect.name,
        driver=engine.dialect.driver,
        server=_server(engine.url, number),
        made_at=made_at,
        is_async=engine.dialect.is_async,
        pool=_kind(pool),
        pool_size=pool.size() if callable(getattr(pool, "size", None)) else None,
        max_overflow=getattr(pool, "_max_overflow", None),
        pool_timeout=pool.timeout() if callable(getattr(pool, "timeout", None)) else None,
        recycle=None if recycle is None or recycle < 0 else float(recycle),
        pre_ping=bool(getattr(pool, "_pre_ping", False)),
        resets=getattr(getattr(pool, "_reset_on_return", None), "name", "") != "reset_none",
        autocommit_argument=_autocommit(engine.url),
        guard=None if (guard := guards.guard_of(engine)) is None else settings(guard.config),
    )


def settings(config: GuardConfig) -> dict[str, Any]:
    """The guard's settings that checks look at."""
    return {name: getattr(config, name) for name in _SETTINGS}


def _kind(pool: Any) -> str:
    """The public name of the pool's class: an application's own class is what it is derived from."""
    known = ("NullPool", "StaticPool", "SingletonThreadPool", "AssertionPool", "QueuePool")
    names = [each.__name__.replace("AsyncAdapted", "").replace("Fallback", "") for each in type(pool).__mro__]
    return next((name for name in names if name in known), type(pool).__name__)


def _shown(url: URL) -> str:
    """The URL without passwords: that of the user, those among its arguments, and those within an argument."""
    hidden = {name: HIDDEN if is_secret(name) else _hidden(value) for name, value in url.query.items()}
    shown = url.update_query_dict(hidden).render_as_string(hide_password=True)
    return shown.replace(quote_plus(HIDDEN), HIDDEN)


def _hidden(value: str | tuple[str, ...]) -> str | list[str]:
    if not isinstance(value, str):
        return [str(_hidden(each)) for each in value]
    if not (found := passwords_in(value)):
        return value
    secrets = Secrets()
    secrets.add(*found)
    return secrets.hide(value)


def _server(url: URL, number: int) -> str:
    if url.get_backend_name() == "sqlite":
        return f"sqlite #{number}"
    backend = url.get_backend_name()
    host = url.host or _argument(url, "host") or _argument(url, "unix_socket") or "localhost"
    if host in ("127.0.0.1", "::1"):
        host = "localhost"
    return f"{backend} {host}:{url.port or _argument(url, 'port') or _PORTS.get(backend, '')}"


def _argument(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else ",".join(value)


def _autocommit(url: URL) -> str:
    for name, value in url.query.items():
        text = value if isinstance(value, str) else value[-1]
        if name.lower() in ("autocommit", "isolation_level") and text.lower() in _ON:
            return f"{name}={text}"
    return ""
