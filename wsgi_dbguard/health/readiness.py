"""Can this process do its work: can each of its databases be reached? For ``readyz``.

One look in a second and process, however many ask: it is made by a thread of its own, and who asks meanwhile waits for
it, at most as long as a ping may take. So a database that does not answer costs nobody more than that.

A look at one engine is a ping on a connection of its pool, or the opening of one where the pool has none, by way of the
`Breaker`: while the database is away this is the probe that finds it back. It never waits for a place in the pool, and
never takes the last one: what has only one, or only one left, is judged by what is known (the breaker, and the sockets
of its connections). Only where the pool has a single place and nobody has a connection that is known to be alive is one
opened beside it, and closed.

Replicas are not looked at: where one fails, the primary takes its place.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import closing
from time import monotonic

from sqlalchemy import Engine, exc
from sqlalchemy.pool import NullPool, Pool, QueuePool

from wsgi_dbguard import failures, fork, liveness, places, registry, sockets
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.guards import engine_of
from wsgi_dbguard.link import KEY, Link
from wsgi_dbguard.pool import PoolGuard
from wsgi_dbguard.request import Request, current

__all__ = ["AWAY", "READY", "SILENT", "Readiness", "away_for"]

logger = logging.getLogger(__name__)

READY = "ready"
AWAY = "away"
SILENT = "silent"
"""It has not answered yet, or not in time."""

_PAUSE = 1.0  # seconds between the beginnings of two looks
_IMPATIENT = math.inf  # seconds that the look has waited already: more than any `hold`


class Readiness:
    """The judgement of one process. `guards` are those of the engines that it needs."""

    def __init__(self, guards: Callable[[], Iterable[PoolGuard]]) -> None:
        self._guards = guards
        _all.add(self)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()  # nothing under it waits
        self._present: _Look | None = None

    def state(self) -> str:
        """`READY`, `AWAY` or `SILENT`: the worst of all engines, not older than a second."""
        look = self.look()
        look.done.wait(max(0.0, look.patience - (monotonic() - look.began)))
        return look.state

    def look(self) -> _Look:
        """The present look, which may be under way; or a new one, if it is time."""
        with self._lock:
            look = self._present
            if look is not None and not (look.done.is_set() and monotonic() - look.began >= _PAUSE):
                return look
            look = self._present = _Look([each for each in self._guards() if _is_needed(each)])
        look.begin()
        return look


class _Look:
    """One look at all engines, in a thread of its own."""

    def __init__(self, guards: list[PoolGuard]) -> None:
        self.began = monotonic()
        self.guards = guards
        self.patience = max((each.config.ping_timeout for each in guards), default=0.0)
        self.done = threading.Event()
        self.state = SILENT if guards else READY

    def begin(self) -> None:
        if not self.guards:
            self.done.set()
            return
        try:
            threading.Thread(target=self.run, name="wsgi_dbguard.readiness", daemon=True).start()
        except RuntimeError as error:  # out of threads, or the interpreter ends
            logger.info("readiness was not looked at: %s", error)
            self.done.set()

    def run(self) -> None:
        states = set()
        try:
            for guard in self.guards:
                # A C driver blocks all greenlets; for all engines in one go it would be as long as gunicorn waits for
                # a sign of life.
                time.sleep(0.001)
                _owing.setdefault(guard, monotonic())
                states.add(state := _look_at(guard))
                if state == READY:
                    _owing.pop(guard, None)
        except Exception:
            logger.exception("readiness could not be told")
            states.add(AWAY)
        finally:
            self.state = AWAY if AWAY in states else READY
            self.done.set()


def away_for(guard: PoolGuard) -> float | None:
    """Seconds since its database could not be reached, by the breaker, else by looks that met an error or no answer."""
    owing = monotonic() - _owing.get(guard, math.inf)
    return guard.breaker.away_for or (owing if owing > guard.config.ping_timeout else None)


def _is_needed(guard: PoolGuard) -> bool:
    engine = engine_of(guard)
    return engine is not None and engine.dialect not in registry.standbys


def _look_at(guard: PoolGuard) -> str:
    engine = engine_of(guard)
    if engine is None:
        return READY
    # As a request, so that the breaker knows that this one does not wait.
    request = Request({"REQUEST_METHOD": "GET", "PATH_INFO": "readyz"})
    request.held = _IMPATIENT
    token = current.set(request)
    try:
        if not guard.breaker.lets_in:
            return AWAY
        if _places_left(engine.pool) > 1:
            return READY if _ask(engine, guard) or _ask(engine, guard) else AWAY
        if guard.breaker.away:
            return AWAY
        links = guard.links()
        if any(link.in_use or not _is_dead(link) for link in links) or not _is_single(engine):
            return READY
        return READY if _ask_beside(engine, guard) else AWAY
    except exc.TimeoutError:  # others were faster
        return AWAY if guard.breaker.away else READY
    except Exception as error:
        logger.debug("%s: not ready: %s", guard.name, error)
        return AWAY
    finally:
        current.reset(token)
        request.end()


def _is_dead(link: Link) -> bool:
    return bool(link.happened() & sockets.DEAD)


def _places_left(pool: Pool) -> float:
    if isinstance(pool, QueuePool):
        unlimited = pool.size() == 0 or pool._max_overflow < 0  # there is no public name
        return math.inf if unlimited else pool.size() + pool._max_overflow - pool.checkedout()
    return math.inf if isinstance(pool, NullPool) else 0


def _is_single(engine: Engine) -> bool:
    pool = engine.pool
    return not isinstance(pool, QueuePool) or pool.size() + pool._max_overflow == 1


def _ask(engine: Engine, guard: PoolGuard) -> bool:
    """By one of the pool's connections.

    Raises:
        Exception: if none is to be had.
    """
    used = {link: link.used for link in guard.links()}
    with closing(places.take(engine.pool)) as proxy:
        link: Link | None = proxy.info.get(KEY)
        if link not in used:  # it was opened for us
            return True
        if not _places_left(engine.pool):  # others were as fast, and it is the last one
            link.used = used[link]
            return True
        unused = link.used - used[link]
        # Idle is what nobody works with: a look must not keep a connection from being closed as such.
        link.used = used[link]
        if link.fd is None or unused > guard.config.ping_after or not guard.config.ping_after:  # it was pinged just now
            return True
        if liveness.ping(guard.dialect, proxy.dbapi_connection, link, guard.config.ping_timeout):
            return True
        proxy.invalidate()
        return False


def _ask_beside(engine: Engine, guard: PoolGuard) -> bool:
    create = getattr(engine.pool._creator, "__wrapped__", None)  # past the breaker: it is not the pool's
    if create is None:
        return True
    try:
        with closing(create(None)):
            return True
    except Exception as error:
        return failures.classify(error, connecting=True) is not Failure.UNAVAILABLE


_all: weakref.WeakSet[Readiness] = weakref.WeakSet()
_owing: weakref.WeakKeyDictionary[PoolGuard, float] = weakref.WeakKeyDictionary()  # since when without a good answer


def _after_fork() -> None:
    _owing.clear()
    for each in list(_all):
        each._forget()


fork.on_fork(_after_fork)
