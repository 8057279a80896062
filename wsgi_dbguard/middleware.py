"""`DBGuard`: the WSGI boundary. Wrap the application in wsgi.py, and that is all::

    from wsgi_dbguard import DBGuard
    application = DBGuard(application)                       # every SQLAlchemy engine of this process, now and later
    application = DBGuard(application, engine, reporting)    # only these engines
    application = DBGuard(application, ping_after=30.0)      # with a setting, see GuardConfig

What it does to a request: makes sure that the process is the one that it thinks it is (a server may have forked without
telling), opens the request's scope (`wsgi_dbguard.request.Request`, in environ as ``wsgi_dbguard.request``), and ends
it when the response's iterable is closed: after the last chunk, when the client went away, when the application raised,
and also when its own ``close()`` raises. The pools are looked after by `PoolGuard` at each checkout.

When the database failed a request and nothing was sent yet, the request runs once more if that is provably harmless
(`replay`), else a 500 becomes an honest 503 or 409 (`answers`). Sessions that it left in a transaction are rolled back
(`sessions`).

Where the setting ``health`` names a prefix, what is under it is answered here and never reaches the application (see
`wsgi_dbguard.health.endpoints`).

What it leaves alone: every byte and header of any other response. Responses stream as they did, though the first chunk
is asked for before the response begins; one made by ``wsgi.file_wrapper`` comes back as the very object, so that the
server can still send the file by itself. Wrapping twice is harmless: the inner guard steps aside.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from . import fork, frameworks, leaks, registry, sessions, transactions
from .config import GuardConfig
from .exchange import REQUEST, Exchange
from .guards import configuration, guard, guard_all, guards
from .process import here
from .replay import Budget

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .health.endpoints import Health

__all__ = ["DBGuard"]


class DBGuard:
    """WSGI middleware that keeps the database connections of `app` alive and its own.

    Args:
        app: the WSGI application.
        engines: guard only these SQLAlchemy engines; none: all of this process, now and later.
        config: all settings at once; or some as keywords, see `GuardConfig`.
        render: a WSGI application that makes the pages of 503 and 409, see `answers`.

    Raises:
        SettingError: (a ValueError) for an unknown or impossible setting.
        TypeError: if `app` is not callable, one of `engines` is not an engine, or both `config` and keywords are given.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *engines: Engine,
        config: GuardConfig | None = None,
        render: WSGIApplication | None = None,
        **settings: Any,
    ) -> None:
        if not callable(app):
            raise TypeError(f"DBGuard() takes a WSGI application first, not {type(app).__name__}")
        self.app = app
        self.config = configuration(config, settings)
        # Without settings of its own it leaves those of an engine that is guarded already.
        chosen = self.config if config is not None or settings else None
        self._pools = [guard(engine, config=chosen) for engine in engines]
        if not engines:
            guard_all(self.config)
        if self.config.deadline is not None:
            from . import deadline

            # Before `transactions`: a statement that is not sent is not to be counted as a write.
            for engine in engines:
                deadline.watch(engine)
            if not engines:
                registry.on_engine(deadline.watch)
        if self.config.replay != "off" or self.config.statuses or self.config.leaks != "off":
            # Of every engine, guarded here or not: what was committed in any of them must not be done twice.
            registry.on_engine(transactions.watch)
        if self.config.replay != "off" or self.config.leaks != "off":
            sessions.watch()
        if self.config.replay != "off" or self.config.statuses:
            frameworks.connect()
        self.render = render
        self.requests = 0  # that it has let in
        self.budget = Budget()
        self.observes = leaks.observes(self.config)
        self._health = self._health_endpoints()

    def _health_endpoints(self) -> Health | None:
        if self.config.health is None:
            return None
        from .health.endpoints import Health

        return Health(self, self.config.health, self.config.health_token, lambda: self._pools or guards())

    def stats(self) -> dict[str, Any]:
        """The requests that this guard has let in, and the counts of each guarded pool by name (`PoolGuard.stats`)."""
        pools = {each.name: each.stats() for each in self._pools or guards()}
        return {"pid": os.getpid(), "requests": self.requests, "pools": pools}

    def __repr__(self) -> str:
        return f"<DBGuard of {self.app!r} pools={self._pools or 'all'}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not here[0]:
            fork.after_fork()
        health = self._health
        if health is not None:
            if not health.reporter.running:
                health.reporter.begin()
            if environ.get("PATH_INFO", "").startswith(health.prefix) and health.owns(environ):
                return health(environ, start_response)
        known = environ.get(REQUEST)
        # Wrapped twice. An ended one is another matter: somebody outside runs the application again, for an error page.
        if known is not None and known.ended is None:
            return self.app(environ, start_response)
        self.requests += 1
        return Exchange(self, start_response).run(environ)
