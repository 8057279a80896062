"""The guard of one engine's pool: no checkout hands out a connection that is known to be dead.

`PoolGuard` listens to the events of one engine. When a connection is new, TCP keepalive and user timeout are set on its
socket. At each checkout `checkout.check` asks whether it is alive, by one `poll` of its socket. Only on a suspicion, or
when it was not used for `ping_after` seconds, the guard has a closer look, which may be a ping.

A connection that fails is replaced before the application sees it, by SQLAlchemy's own means (`DisconnectionError`).
One that is dead for certain condemns all of its pool that exist at that moment: whatever took it, a restart or a
firewall, took its siblings as well. SQLAlchemy does the same by comparing wall-clock times; here each connection is
marked, so a clock that is set changes nothing. A fresh connection is never checked: one retry is all that a checkout
has.

Example::

    from wsgi_dbguard import guard
    pool_guard = guard(engine, ping_after=30.0)
    pool_guard.stats()["replaced"]
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import threading
import weakref
from collections import Counter
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event, exc
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool, SingletonThreadPool, StaticPool

from . import checkout, connecting, flags, fork, housekeeping, liveness, mishaps, registry, sockets, tally
from .breaker import Breaker
from .config import GuardConfig
from .events import note
from .failover import Failover
from .link import SUSPECT, Link, Retired, has_quirks
from .process import here
from .request import current
from .watchdog import Deadline

if TYPE_CHECKING:
    from .variables import Variables

__all__ = ["PoolGuard"]

logger = logging.getLogger(__name__)
current_request = current.get
_INFINITE = float("inf")
# Their servers say nothing unasked: what has come is the rest of an answer, and a ping would take it for its own.
_ONLY_ANSWERS = frozenset({"mysql", "mariadb"})


def _heard(link: Link) -> float:
    """Since when the server may have been silent on it: to take it and give it back without a word is not to use it."""
    return link.used if link.quiet is None or not link.quiet.lasts() else min(link.used, link.quiet.since)


class PoolGuard:
    """Keeps the pooled connections of one engine alive. Made by `guard`, one for each pool."""

    def __init__(self, engine: Engine, config: GuardConfig, *, name: str, explicit: bool) -> None:
        self.name = name
        self.explicit = explicit  # asked for by name; one made for "all engines" gives way to it
        self._dialect = weakref.ref(engine.dialect)
        # Only in a queue does a connection lie where nobody else can have it: other pools are not swept.
        self._sweepable = isinstance(engine.pool, QueuePool)
        self.shares = isinstance(engine.pool, StaticPool | SingletonThreadPool)  # one connection, several users
        self.shares_one = isinstance(engine.pool, StaticPool)  # with all threads
        self.breaker = Breaker(name, config)
        self._counts: Counter[str] = Counter()
        self._replaced: Counter[str] = Counter()
        self._retired: Counter[str] = Counter()
        self._links: set[Link] = set()
        self.failover = Failover()  # what is known of the server is as true in a child
        self.reset()
        self.configure(config)
        # SQLite has no server to lose, and async drivers live on an event loop that is not WSGI's.
        if engine.dialect.name != "sqlite" and not engine.dialect.is_async:
            event.listen(engine, "do_connect", self._before_connect)
            connecting.install(engine.dialect, self._connect_timeout)
            event.listen(engine, "connect", self._on_connect)
            self.breaker.install(engine, self)
            checkout.listen(engine.pool)
            # Last: what is opened meanwhile has either been told to the listeners or is found here.
            for link in list(registry.links):
                if registry.pool_of(link.entry()) is engine.pool:
                    link.guard = self
            # A private name, for a word of advice only.
            if getattr(engine.pool, "_pre_ping", False):
                logger.warning("%s: pool_pre_ping beside the guard is a needless round trip at each checkout", self)

    def hear(self, engine: Engine) -> None:
        """Learn of the errors that `engine` meets on the connections of this pool; several engines may have it."""
        if engine.dialect.name != "sqlite" and not engine.dialect.is_async:
            event.listen(engine, "handle_error", functools.partial(mishaps.hear, self))

    @property
    def dialect(self) -> Dialect:
        """The engine's. It has this guard, so the guard must not keep it."""
        dialect = self._dialect()
        assert dialect is not None  # whoever has a connection of the pool has it
        return dialect

    @property
    def probe_timeout(self) -> float | None:
        """Seconds that opening a connection may take where the pool is a replica's; None where it is not."""
        dialect = self._dialect()  # the pool may have outlived its engine
        return None if dialect is None else registry.standbys.get(dialect)

    def configure(self, config: GuardConfig) -> None:
        """Take over `config`; for connections opened from now on where it is about the connection itself."""
        self.config = self.breaker.config = config
        # Unused for longer than this is worth a closer look: a ping, or retirement.
        self.attention = min(config.ping_after, _INFINITE if config.idle_timeout is None else config.idle_timeout)

    def reset(self) -> None:
        """The state of a process that has no connection yet, as after a fork."""
        # Reentrant: the garbage collector may close a connection, and come here, in the middle of a locked section.
        self.lock = threading.RLock()
        self.breaker.reset()
        for each in (self._counts, self._replaced, self._retired, self._links):
            if each:
                each.clear()
        self._past_checkouts = 0  # of links that are gone
        self._condemned = -_INFINITE  # when all connections that there were were condemned
        self._variables: Variables | None = None  # no request has left a setting

    def stats(self) -> dict[str, Any]:
        """Counts since this process began, and gauges (`connections`, `idle`) of now.

        ``replaced`` says why connections were replaced at checkout: ``dead`` (the socket said so), ``ping`` (the server
        did not answer), ``condemned`` (older than a dead one), ``max_lifetime``, ``idle_timeout``, ``read_only``
        (failover), ``unread`` (an answer was left on it: MySQL and MariaDB), ``deadline`` (a query on it was
        cancelled), ``changed`` (a request left settings, locks or temporary tables on it), ``forked``; ``restored`` is
        how many got their settings back instead, ``retired`` how many were closed while they lay idle
        (``retired_by_cause``). ``away``: the database could not be reached when it was last tried; ``waiting`` is how
        many wait for it now, ``held`` how many have done so, and ``refused`` how many were told at once or waited in
        vain, see `breaker`.
        """
        # In this order: one that is just being closed is missing from the sum for a moment, and never counted twice.
        past = self._past_checkouts
        mine = self.links()
        return {
            "pid": getpid(),
            "connections": len(mine),
            "idle": sum(not link.in_use for link in mine),
            "checkouts": past + sum(link.uses for link in mine),
            "connects": self._counts["connects"],
            "pings": self._counts["pings"],
            "restored": 0 if self._variables is None else self._variables.restored,
            "retired": self._retired.total(),
            "invalidations": self._counts["invalidations"],
            "away": self.breaker.away,
            "outages": self.breaker.outages,
            "waiting": self.breaker.waiting,
            "held": self.breaker.held,
            "refused": self.breaker.refused,
            "replaced": dict(self._replaced),
            "retired_by_cause": dict(self._retired),
        }

    def links(self) -> list[Link]:
        """The connections of this pool, checked out ones and idle ones, in no order."""
        return [link for link in list(self._links) if link.guard is self]

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<PoolGuard {self.name} pid={stats['pid']} connections={stats['connections']} idle={stats['idle']}>"

    # The way of a connection: connect, checkout (see there), gone.

    def _before_connect(self, dialect: Dialect, entry: Any, args: Any, keywords: dict[str, Any]) -> None:
        timeout = self._connect_timeout()
        if timeout is not None:
            connecting.bound(getattr(dialect, "driver", ""), args, keywords, timeout)

    def _connect_timeout(self) -> float | None:
        limits = [self.config.connect_timeout, self.probe_timeout]
        return min((each for each in limits if each is not None), default=None)

    def begin_opening(self, connection: Any, entry: ConnectionPoolEntry) -> None:
        """The handshake is over. SQLAlchemy's own questions, and the user's, belong to the opening and to its time.

        So does the turn for them: those of the first connections of an engine are asked one after the other.
        """
        link = registry.link_of(connection, entry)
        link.tune(self.config)
        timeout = self._connect_timeout()
        if link.fd is not None and timeout is not None:
            link.opening = Deadline(timeout, link.cut)
            link.opening.__enter__()

    def _on_connect(self, connection: Any, entry: ConnectionPoolEntry) -> None:
        link = registry.link_of(connection, entry)
        opening, link.opening = link.opening, None
        if opening is not None:
            opening.__exit__()
        self._adopt(link)
        with self.lock:
            self._counts["connects"] += 1

    def _adopt(self, link: Link) -> None:
        config = self.config
        link.guard = self
        self._links.add(link)
        if config.max_lifetime is not None:
            # Jitter: connections that were opened together must not all be replaced together.
            link.expires = link.born + config.max_lifetime * (1 - 0.1 * random.random())
        if link.fd is None:
            with self.lock:
                first = not self._counts["no_socket"]
                self._counts["no_socket"] += 1
            if first:
                logger.warning("%s: this driver does not tell its socket; connections are checked by ping only", self)
        else:
            link.look = sockets.watch(link.fd)
            connection = link.connection()
            if has_quirks(connection):
                from . import quirks

                quirks.mend(connection)
        link.flags = flags.reader(link.connection())
        if self._variables is not None:
            self._variables.expect(link)
        housekeeping.ensure(self)

    def forget(self, link: Link) -> None:
        """The connection of `link` is being closed, or was collected. Called once for each."""
        with self.lock:
            link.doomed = link.doomed or "closed"  # by SQLAlchemy: not to be closed by housekeeping at the same time
            self._links.discard(link)
            self._past_checkouts += link.uses
        tally.changed(self)

    # The decision

    def examine(self, connection: Any, entry: ConnectionPoolEntry, link: Link) -> None:
        """The closer look, when `checkout` finds anything at all unusual: returns if the connection may be used.

        Raises:
            sqlalchemy.exc.DisconnectionError: if not; SQLAlchemy then replaces it and asks again.
        """
        if not here[0]:
            fork.after_fork()
            raise self.replace("forked", link)
        with self.lock:  # housekeeping may be taking it right now, or find that it came too late
            doom = link.doomed
        if isinstance(entry.dbapi_connection, Retired):
            # Listeners to what SQLAlchemy does next are to meet what they know.
            entry.dbapi_connection = entry.dbapi_connection.connection  # type: ignore[misc]
            raise exc.DisconnectionError(doom)  # counted when it was closed
        if doom is None and link not in self._links:  # opened before this guard came
            link.tune(self.config)
            self._adopt(link)
            if link.born < self._condemned:
                link.doomed = doom = "condemned"
        elif not link.uses:  # fresh
            if link.changed is not None and self._variables is not None:
                self._variables.learn(self.dialect, connection, link, self.config.ping_timeout)
            return
        if doom == SUSPECT:
            self.failover.look(self, connection, link)
        elif doom is not None:
            raise self.replace(doom, link)
        now = monotonic()
        events = link.happened()
        if events & sockets.DEAD:
            self.condemn(link, "was found dead")
            raise self.replace("dead", link)
        if cause := self._overdue(link, now):
            raise self.replace(cause, link)
        if events and link.fd is not None and self.dialect.name in _ONLY_ANSWERS:
            raise self.replace("unread", link)
        if events or now - _heard(link) > self.config.ping_after or self.config.ping_after == 0:
            with self.lock:
                self._counts["pings"] += 1
            if not liveness.ping(self.dialect, connection, link, self.config.ping_timeout):
                self.condemn(link, "did not answer a ping")
                raise self.replace("ping", link)
        if link.changed is not None and not self._restore(connection, link):
            raise self.replace("changed", link)

    def _restore(self, connection: Any, link: Link) -> bool:
        """Put back what requests have changed on it; False if it cannot be used any more."""
        if self._variables is None:
            try:  # here: most applications change nothing that outlives a request
                from .variables import Variables
            except (ImportError, OSError):  # such as out of descriptors
                return False
            self._variables = Variables()
        return self._variables.restore(self.dialect, connection, link, self.config.ping_timeout)

    def _overdue(self, link: Link, now: float) -> str | None:
        if now > link.expires:
            return "max_lifetime"
        if self.config.idle_timeout is not None and now - link.used > self.config.idle_timeout:
            return "idle_timeout"
        return None

    def condemn(self, link: Link, discovery: str) -> None:
        """No connection of this pool that exists now is handed out again. Once for each outage, not for each victim."""
        with self.lock:
            if link.doomed not in (None, SUSPECT):
                return
            for each in self.links():
                if each.doomed in (None, SUSPECT):
                    each.doomed = "condemned"
            self._condemned = monotonic()
            self._counts["invalidations"] += 1
        logger.warning(
            "%s: process %d: a connection %s; all older ones are replaced as they are asked for",
            self.name, getpid(), discovery,
        )  # fmt: skip
        note(f"a connection {discovery}; all older ones are replaced", self.name, bad=True)

    def replace(self, cause: str, link: Link) -> exc.DisconnectionError:
        with self.lock:
            self._replaced[cause] += 1
        request = current_request()
        if request is not None:
            request.replaced += 1
        logger.info("%s: process %d: replacing %s: %s", self.name, getpid(), link, cause)
        note(f"connection replaced: {cause}", self.name)
        return exc.DisconnectionError(cause)

    # Housekeeping

    def sweep(self) -> None:
        """Close idle connections that are past `idle_timeout` or `max_lifetime`. Called by housekeeping's thread."""
        if not self._sweepable:
            return
        now = monotonic()
        for link in self.links():
            # One that was never used is not idle: it is on its way from connect to its first checkout.
            if link.uses and not link.in_use and (cause := self._overdue(link, now)):
                self._retire(link, cause)

    def give_up(self, link: Link) -> None:
        """Close a connection now that a request has left a lock on, if nobody has it."""
        if self._sweepable:
            self._retire(link, "changed")

    def _retire(self, link: Link, cause: str) -> None:
        entry, connection = link.entry(), link.connection()
        with self.lock:
            doom = link.doomed
            if doom not in (None, SUSPECT, "condemned"):
                return
            link.doomed = cause
            # Doomed first, then asked: a checkout marks the entry as in use first, then asks whether it is doomed. So
            # either it is seen here, or it sees this, waits for the lock, and replaces the connection.
            if entry is None or connection is None or link.in_use:
                link.doomed = doom
                return
            # Not `entry.invalidate()`: SQLAlchemy looks into an entry more than once at checkout, and fails when it is
            # emptied in between; and not "soft", which goes by the wall clock.
            entry.dbapi_connection = Retired(connection)  # type: ignore[misc]
            self._retired[cause] += 1
        logger.info("%s: process %d: closing %s: %s", self.name, getpid(), link, cause)
        note(f"idle connection closed: {cause}", self.name)
        # At the next checkout SQLAlchemy closes it once more, and some drivers raise then (PyMySQL: "Already closed").
        # Those in C, that take no attribute, do not.
        close = connection.close
        with contextlib.suppress(AttributeError):
            connection.close = lambda: None
        close()
        registry.forget(link)
