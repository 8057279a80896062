"""Which engine has which guard: the way in, `guard` for one engine and `guard_all` for all that there are and will be.

An engine and its ``execution_options()`` copies share one pool, so they share one guard; and so do engines that were
made with the pool of another one. It lives as long as its engines, and knowing it does not keep them.

Example::

    from wsgi_dbguard import guard
    pool_guard = guard(engine, ping_after=30.0)
    pool_guard.stats()["replaced"]
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Container
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine import Dialect

from . import breaker, fork, registry
from .config import GuardConfig
from .errors import SettingError
from .patterns import lazily
from .pool import PoolGuard

__all__ = [
    "address",
    "configuration",
    "engine_of",
    "guard",
    "guard_all",
    "guard_of",
    "guards",
    "has_server",
    "numbered",
]

# Arguments of a URL: libpq's password and sslpassword, passwd of MySQL's drivers; what ODBC has in one of its own.
_SECRET = lazily("pass(?!file)|pwd|secret|token|odbc_connect", re.IGNORECASE)
_guards: weakref.WeakKeyDictionary[Dialect, PoolGuard] = weakref.WeakKeyDictionary()  # of an engine and all its copies
_lock = threading.RLock()
_everywhere: GuardConfig | None = None


def guards() -> list[PoolGuard]:
    """The guards of this process."""
    with _lock:
        return list(dict.fromkeys(_guards.values()))


def guard_of(engine: Engine) -> PoolGuard | None:
    """The guard of `engine`, if it has one."""
    return _guards.get(engine.dialect)


def engine_of(pool_guard: PoolGuard) -> Engine | None:
    """The engine of a guard, if it is still there and has a server that can be lost."""
    for engine in list(registry.engines):
        if _guards.get(engine.dialect) is pool_guard:
            return engine if has_server(engine) else None
    return None


def has_server(engine: Engine) -> bool:
    """Whether it is guarded against more than forks: not SQLite's, nor an async driver's."""
    return engine.dialect.name != "sqlite" and not engine.dialect.is_async


def address(engine: Engine) -> str:
    """What may be told of an engine: the pool's logging name, else ``address:port/database``.

    Not the URL: it has the user, and may have secrets in its query.
    """
    url = engine.url
    port = "" if url.port is None else f":{url.port}"
    return engine.pool.logging_name or f"{url.host or ''}{port}/{url.database or ''}"


def numbered(name: str, taken: Container[str]) -> str:
    """`name`, with a number where it is taken."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name} #{number}"
    return found


def guard(engine: Engine, *, config: GuardConfig | None = None, **settings: Any) -> PoolGuard:
    """Guard the pool of `engine`, from now on and with the connections that it has; at the second call, the same guard.

    Args:
        engine: a SQLAlchemy engine; for Flask-SQLAlchemy ``db.engine``.
        config: all settings at once; or some as keywords, see `GuardConfig`.

    Raises:
        SettingError: (a ValueError) for an unknown or impossible setting, or other settings than it is guarded with.
        TypeError: for something that is not an engine, or `config` and keywords together.
    """
    if not isinstance(engine, Engine):
        hint = "; give its .sync_engine" if hasattr(engine, "sync_engine") else ""
        raise TypeError(f"guard() takes a SQLAlchemy Engine, not {type(engine).__name__}{hint}")
    registry.engines[engine] = None
    return _guard(engine, configuration(config, settings), explicit=True, changed=bool(config or settings))


def guard_all(config: GuardConfig) -> None:
    """Guard every engine of this process, those that there are and those to come, but for those guarded by name."""
    global _everywhere
    if _everywhere is not None and not _everywhere.same_pool(config):
        raise SettingError(f"all engines of this process are guarded with other settings already: {_everywhere}")
    if _everywhere is None:
        _everywhere = config
        registry.on_engine(lambda engine: _guard(engine, config, explicit=False, changed=False))


def _guard(engine: Engine, config: GuardConfig, *, explicit: bool, changed: bool) -> PoolGuard:
    with _lock:
        known = _guards.get(engine.dialect) or breaker.guard_of(engine.pool)  # which another engine may have as well
        if known is None:
            known = PoolGuard(engine, config, name=_name(engine), explicit=explicit)
        elif changed:
            if known.explicit and not known.config.same_pool(config):
                raise SettingError(f"{known.name} is guarded with other settings already: {known.config}")
            known.configure(config)
            known.explicit = True
        if engine.dialect not in _guards:
            _guards[engine.dialect] = known
            known.hear(engine)
    if known.config.settle:
        from .settle import settle

        settle(engine, known.config)
    if known.config.skip_idle_rollback:
        from .rollbacks import skip_idle

        skip_idle(engine)
    return known


def _name(engine: Engine) -> str:
    """The pool's logging name, else the URL without its passwords; with a number where another guard has that name."""
    secret = [each for each in engine.url.query if _SECRET.search(each)]
    url = engine.url.difference_update_query(secret)
    name = engine.pool.logging_name or url.render_as_string(hide_password=True)
    return numbered(name, {each.name for each in guards()})


def configuration(config: GuardConfig | None, settings: dict[str, Any]) -> GuardConfig:
    """One configuration from the two ways to give it."""
    if config is None:
        return GuardConfig.load(settings)
    if settings:
        raise TypeError("give either config or single settings, not both")
    if not isinstance(config, GuardConfig):
        raise TypeError(f"config must be a GuardConfig, not {type(config).__name__}")
    return config


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for each in guards():
        each.reset()


fork.on_fork(_after_fork)
