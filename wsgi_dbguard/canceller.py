"""The thread that stops queries on the server, and when a worker is aborted or a query interrupted, who asks it to.

One thread in each process, there only while there is something to stop. It is a real one under gevent as well, since a
driver in C blocks the whole event loop; what it calls there of a patched driver runs on an event loop of its own. It
may have to wait for a server that does not answer: then a second one does the work that comes (there are never more
than `_MOST`), and whoever asked does not wait for it any longer than it wants to.

Example::

    job = start(link, statement)
    job.wait(time.monotonic() + 0.5)
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable

from sqlalchemy import Engine

from . import cancel, fork, registry
from .link import Link
from .unpatched import original

__all__ = ["Job", "abort", "interrupted", "start"]

logger = logging.getLogger(__name__)

_MOST = 4  # threads
_STUCK = 2.0  # seconds that a job may take before the next one gets a thread of its own
_LAST_WORDS = 0.5  # seconds that a worker which is to end may take: gunicorn kills it one second after SIGABRT


class Job:
    """One query to be stopped. `done` tells that nothing of it is on its way to the server any more."""

    __slots__ = ("_way", "done")

    def __init__(self, way: cancel.Way | None) -> None:
        self._way = way
        self.done = way is None

    def run(self) -> None:
        try:
            if self._way is not None:
                self._way()
        except Exception as error:  # the server is away, or too many connections: the socket will be cut
            logger.warning("process %d: a query could not be cancelled on the server: %s", os.getpid(), error)
        finally:
            self._way = None
            self.done = True

    def wait(self, until: float, sleep: Callable[[float], object] | None = None) -> bool:
        """Whether it is done, waiting up to the time `until` (`time.monotonic()`).

        It looks again and again: under gevent a greenlet cannot wait for a lock that a real thread holds.
        """
        pause = 0.0005
        while not self.done:
            if time.monotonic() >= until:
                return False
            (sleep or time.sleep)(pause)
            pause = min(2 * pause, 0.02)
        return True


class _Canceller:
    """The threads and the jobs they have before them. Made anew in a forked child, where no such thread exists."""

    def __init__(self) -> None:
        # Reentrant: the handler of a signal may come here in the middle of a locked section.
        self.mutex = original("_thread", "RLock")()
        self.jobs: deque[Job] = deque()
        self.threads = 0
        self.leaving = 0  # threads that have nothing to do any more, and are not gone yet
        self.taken = 0.0  # when the last job was

    def add(self, job: Job) -> None:
        # Critical section: no I/O, and the thread that may have to be started takes the mutex first of all.
        with self.mutex:
            self.jobs.append(job)
            now = time.monotonic()
            if not self.threads or (now - self.taken > _STUCK and self.threads < _MOST):
                original("_thread", "start_new_thread")(self.run, ())
                self.threads += 1
                self.taken = now

    def run(self) -> None:
        try:
            while (job := self.take()) is not None:
                job.run()
        finally:
            _leave_gevent()
            with self.mutex:
                self.leaving -= 1

    def take(self) -> Job | None:
        with self.mutex:
            if not self.jobs:
                self.threads -= 1
                self.leaving += 1
                return None
            self.taken = time.monotonic()
            return self.jobs.popleft()


def _leave_gevent() -> None:
    """End the event loop that a patched driver may have made for this thread."""
    gevent = sys.modules.get("gevent")
    if gevent is not None:
        gevent.get_hub().destroy(destroy_loop=True)


def _let_leave() -> None:
    """At the end of the process: an event loop that is destroyed meanwhile corrupts the heap (SIGABRT)."""
    until = time.monotonic() + _LAST_WORDS / 2  # beside what `abort` may have taken already
    while (_canceller.threads or _canceller.leaving) and time.monotonic() < until:
        original("time", "sleep")(0.001)


atexit.register(_let_leave)
_canceller = _Canceller()
_aborted: list[Job] = []
_aborted_at = float("-inf")


def start(link: Link, statement: str | None = None, began: float | None = None) -> Job:
    """Have the query on the connection of `link` stopped; returns at once. Arguments as of `cancel.way`."""
    job = Job(cancel.way(link, statement, began))
    if not job.done:
        _canceller.add(job)
    return job


def interrupted(link: Link, statement: str | None) -> None:
    """A query was interrupted here (SystemExit, a greenlet's timeout): see to it that the server ends it as well."""
    try:
        if time.monotonic() - _aborted_at > _STUCK:
            start(link, statement).wait(time.monotonic() + _LAST_WORDS)
    except Exception:
        logger.exception("could not cancel an interrupted query")


def abort(seconds: float = _LAST_WORDS) -> None:
    """Stop what every connection of this process that is in use is doing, in `seconds` at most. Never raises.

    For a worker that is about to end; called again within two seconds, it only waits for what it began.
    """
    global _aborted, _aborted_at
    try:
        now = time.monotonic()
        if now - _aborted_at > _STUCK:
            _aborted_at = now
            _aborted = []
            for link in list(registry.links):
                if link.pid == os.getpid() and link.in_use:
                    _aborted.append(_attempt(link))
        sleep = original("time", "sleep")  # in the handler of a signal, gevent's event loop cannot be gone back to
        for job in _aborted:
            job.wait(now + seconds, sleep)
    except Exception:
        logger.exception("could not cancel the queries of this process")


def _attempt(link: Link) -> Job:
    running = link.running
    try:
        return start(link) if running is None else start(link, running.statement, running.began)
    except Exception:  # its connection is just being closed
        logger.debug("no way to cancel the query of %r", link, exc_info=True)
        return Job(None)


def _after_fork() -> None:
    global _canceller, _aborted, _aborted_at
    _canceller = _Canceller()
    _aborted = []
    _aborted_at = float("-inf")


def _prepare(engine: Engine) -> None:
    cancel.prepare(engine.dialect)


fork.on_fork(_after_fork)
registry.on_engine(_prepare)
