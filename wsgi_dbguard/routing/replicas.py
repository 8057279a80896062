"""`Replicas`: one primary and its replicas, and the choice between them for each request."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Engine
from sqlalchemy.engine import Dialect

from wsgi_dbguard import fork, registry, request
from wsgi_dbguard.errors import DatabaseUnavailable, SettingError
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.request import Request, current

from .config import RoutingConfig
from .positions import Position
from .replica import Replica, Sample
from .route import Route
from .servers import kind_of, written
from .tokens import Tokens
from .watcher import watch

__all__ = ["Replicas", "group_of"]

_SOON = 0.1  # seconds until the next look while there is a replica that answers and is not within max_lag
_groups: WeakKeyDictionary[Dialect, ref[Replicas]] = WeakKeyDictionary()  # by that of the primary and its copies
_all: WeakSet[Replicas] = WeakSet()


def group_of(bind: object) -> Replicas | None:
    """The `Replicas` whose primary this engine, or copy of an engine, is."""
    if not isinstance(bind, Engine):
        return None
    found = _groups.get(bind.dialect)
    return None if found is None else found()


class Replicas:
    """A primary and its replicas. Keep it for as long as the engines; sessions find it by the primary's engine.

    Args:
        primary: the engine that `RoutingSession`s are bound to.
        replicas: an engine for each replica. They must refuse writes.
        secret: what tokens are signed with, the same in all processes and hosts; several: the newest first.
        settings: see `RoutingConfig`.

    Raises:
        SettingError: (a ValueError) for an impossible setting, or a primary that has a `Replicas` already.
        TypeError: for something that is not an engine, or an unknown setting.
        ValueError: for a database that tells no positions.
    """

    def __init__(
        self,
        primary: Engine,
        replicas: Sequence[Engine],
        *,
        secret: str | bytes | Sequence[str | bytes],
        **settings: Any,
    ) -> None:
        for engine in (primary, *replicas):
            if not isinstance(engine, Engine):
                raise TypeError(f"Replicas() takes SQLAlchemy Engines, not {type(engine).__name__}")
            kind_of(engine)
        if not replicas:
            raise SettingError("replicas: at least one is needed")
        if len({id(engine.pool) for engine in (primary, *replicas)}) <= len(replicas):
            raise SettingError("replicas: primary and replicas must be different engines")
        if group_of(primary) is not None:
            raise SettingError(f"there is a Replicas of {primary!r} already")
        self.config = RoutingConfig(**settings)
        self.primary = primary
        self.asking = primary.execution_options(isolation_level="AUTOCOMMIT")
        self.tokens = Tokens(secret, name=self.config.cookie, lifetime=self.config.lifetime)
        self.replicas = [Replica(each, self.config, f"replica {n} ({each.url!r})") for n, each in enumerate(replicas)]
        self._variable = "HTTP_" + self.config.header.upper().replace("-", "_")
        self.reset()
        watch(primary)
        registry.standbys.update((each.dialect, self.config.probe_timeout) for each in replicas)
        _groups[primary.dialect] = ref(self)
        _all.add(self)
        request.tokens.add(self.config.header.lower())
        if _arrive not in request.arrivals:
            request.arrivals.append(_arrive)

    def reset(self) -> None:
        """The state of a process that has asked nobody yet, as after a fork."""
        self._lock = threading.Lock()
        self._checking = threading.Lock()
        self._next_check = 0.0
        self._samples: deque[Sample] = deque(maxlen=int(self.config.max_lag / self.config.check_every) + 2)
        self._counts: Counter[str] = Counter()
        for each in self.replicas:
            each.reset()
            each.requests = 0

    def stats(self) -> dict[str, Any]:
        """Counts of requests since this process began, and what is known of each replica.

        ``primary`` says why requests had the primary: ``unsafe`` (their method), ``wrote`` (a sign of a write, perhaps
        after some reading from a replica), ``pinned``, ``behind`` (no replica had the client's position), ``lagging``
        (none was within max_lag), ``again`` (a second attempt). ``pins`` counts tokens without a position; ``waited``
        requests for which a replica had to catch up first. ``lag``: at most, in seconds; None where nothing is known.
        """
        with self._lock:
            counts = dict(self._counts)
        pins, waited = counts.pop("pins", 0), counts.pop("waited", 0)
        replicas = {
            each.name: {
                "requests": each.requests,
                "probes": each.probes,
                "usable": each.usable(monotonic()),
                "lag": None if each.covered is None else each.lag,
            }
            for each in self.replicas
        }
        return {"primary": counts, "pins": pins, "waited": waited, "replicas": replicas}

    def __repr__(self) -> str:
        return f"<Replicas of {self.primary!r} {self.replicas}>"

    def count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    # The choice

    def route(self, request: Request) -> Route | None:
        """What is known of the request's present attempt."""
        for each in request.extras:
            if isinstance(each, Route) and each.group is self:
                return each
        return None

    def choose(self, request: Request, bind: Engine) -> Engine:
        """Where a statement of `request` goes that gives no sign of a write: `bind`, or a replica like it."""
        route = self.route(request)
        if route is None or route.primary or bind.get_execution_options().get("isolation_level") == "SERIALIZABLE":
            return bind  # PostgreSQL's standbys refuse that level, and nobody asks for it without a reason
        if not route.decided:
            route.replica = self._decide(request, route)
            # Two threads of one request may both come here: the last one's choice is as good.
            route.decided = True
        if route.replica is None:
            return bind
        return route.replica.engine_like(bind, self.primary)

    def routes(self, request: Request | None) -> Iterator[Route]:
        """That of `request`, and of those whose application made it."""
        while request is not None:
            route = self.route(request)
            if route is not None:
                yield route
            request = request.outer

    def write(self, request: Request, reason: str) -> None:
        """From here on `request`, and those around it, have the primary."""
        first = True
        for route in self.routes(request):
            if first and not route.primary:
                self.count(reason)
            route.primary, first = True, False

    def _decide(self, request: Request, route: Route) -> Replica | None:
        if not request.safe:
            self.write(request, "unsafe")
            return None
        if any(each.primary for each in self.routes(request.outer)):
            self.write(request, "wrote")  # the request whose application made this one
            return None
        if request.attempt > 1:
            self.write(request, "again")
            for each in self.routes(request):
                each.wrote = True  # the replica may have refused what a SELECT's function was to write
            return None
        token = self.tokens.load(route.texts)
        if token.pinned > time.time():
            self.count("pinned")
            return None
        self._check()
        now = monotonic()
        usable = [each for each in self.replicas if each.usable(now)]
        if not usable:
            usable = self._lagging(now)
            if not usable:
                self.count("lagging")
                return None
            if self.config.lagging == "stale":
                return self._serve(random.choice(usable), request)
        if token.position is None:
            return self._serve(random.choice(usable), request)
        chosen = self._caught_up(usable, token.position)
        if chosen is None:
            self.count("behind")
            return None
        return self._serve(chosen, request)

    def _serve(self, replica: Replica, request: Request) -> Replica:
        request.stand_in = True
        with self._lock:
            replica.requests += 1
        return replica

    def _lagging(self, now: float) -> list[Replica]:
        """What there is when no replica is within max_lag, by the setting."""
        if self.config.lagging == "refuse":
            request = current.get()
            if request is not None:
                request.database_failed(Failure.UNAVAILABLE, committing=False)
            raise DatabaseUnavailable(None, None, ConnectionError("no replica is within max_lag"))
        if self.config.lagging == "primary":
            return []
        return [each for each in self.replicas if not each.is_out(now)]

    def _caught_up(self, usable: list[Replica], position: Position) -> Replica | None:
        """A replica that has `position`: known to, or asked, or waited for."""
        known = [each for each in usable if each.has(position)]
        if known:
            return random.choice(known)
        until = monotonic() + self.config.wait
        pause = 0.001
        while True:
            for each in random.sample(usable, len(usable)):
                if each.ask() and each.has(position):
                    if pause > 0.001:
                        self.count("waited")
                    return each
            left = until - monotonic()
            usable = [each for each in usable if not each.is_out(monotonic())]
            if left <= 0 or not usable:
                return None
            time.sleep(min(pause, left))
            pause *= 2

    def _check(self) -> None:
        """Now and then, by one thread at a time: how far is the primary, and how far are the replicas?"""
        now = monotonic()
        if now < self._next_check or not self._checking.acquire(blocking=False):
            return
        try:
            position = self._position()
            if position is not None:  # an older sample will do
                self._samples.append((now, position))
            for each in self.replicas:
                if not each.is_out(now) and each.ask():
                    each.compare(self._samples, self._position)
            done = monotonic()
            soon = any(not each.usable(done) and not each.is_out(done) for each in self.replicas)
            self._next_check = done + (min(_SOON, self.config.check_every) if soon else self.config.check_every)
        finally:
            self._checking.release()

    def _position(self) -> Position | None:
        """How far the primary is; None where it does not answer: whoever needs it will tell what is wrong."""
        with suppress(Exception):
            return written(self.asking, self.config.probe_timeout)
        return None


def _arrive(request: Request, environ: dict[str, Any]) -> None:
    cookies = environ.get("HTTP_COOKIE", "")
    for group in list(_all):
        texts = _values(cookies, group.config.cookie) if cookies else []
        if header := environ.get(group._variable, "").strip():
            texts.append(header)
        route = Route(group, texts, https=environ.get("wsgi.url_scheme") == "https")
        request.extras = (*request.extras, route)


def _values(cookies: str, name: str) -> list[str]:
    """Those of the cookies with that name."""
    parts = (part.partition("=") for part in cookies.split(";"))
    return [value.strip() for each, _, value in parts if each.strip() == name and value.strip()]


def _after_fork() -> None:
    for each in list(_all):
        each.reset()


fork.on_fork(_after_fork)
