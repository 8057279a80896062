"""The thread that keeps the figures of this worker, and shares them with the others: one for all guards of a process.

It looks once a second, and writes only what has changed. While a database is away it sees to it that this worker tries
to reach it now and then, so that the page does not go on to say so for lack of requests.

It begins when the server's hooks say that this process is a worker, and without them with its first request: a master
that only forks is no worker. In a forked child it does not exist until then.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from typing import Any, Protocol

from wsgi_dbguard import events, fork, worker

from . import snapshot
from .readiness import Readiness
from .sharing import Share

__all__ = ["Reporter", "reporter"]

logger = logging.getLogger(__name__)

_PAUSE = 1.0
_SIGN_OF_LIFE = 5.0
"""Seconds after which the file is written, whether anything has changed or not."""


class _Counting(Protocol):
    requests: int


class Reporter:
    """Begun by `begin`; `workers` tells of all."""

    def __init__(self) -> None:
        self.running = False
        self._guards: weakref.WeakSet[_Counting] = weakref.WeakSet()
        self._readiness: weakref.WeakSet[Readiness] = weakref.WeakSet()
        self._forget()

    def _forget(self) -> None:
        # The interpreter's own lock where this was imported before gevent patched: nothing under it switches greenlets.
        self._lock = threading.Lock()
        self._share = Share()
        self._history = snapshot.History()
        self._over = threading.Event()
        self._written: tuple[float, dict[str, Any]] | None = None

    def install(self, guard: _Counting, readiness: Readiness) -> None:
        """Count the requests of this `DBGuard`, too; with what tells whether its engines can be reached."""
        self._guards.add(guard)
        self._readiness.add(readiness)
        events.keep()
        worker.on_serving(self.begin)

    def begin(self) -> None:
        """This process is a worker. At the second call, nothing."""
        with self._lock:
            if self.running:
                return
            self.running = True
            self._over = threading.Event()
        atexit.register(self.end)
        try:
            threading.Thread(target=self._run, args=(self._over,), name="wsgi_dbguard.health", daemon=True).start()
        except RuntimeError as error:  # out of threads, or the interpreter ends
            logger.info("the status page has no history of process %d: %s", os.getpid(), error)

    def workers(self) -> list[dict[str, Any]]:
        """All workers of this server that live, this one first, then by age."""
        mine = self._tell()
        others = sorted(self._share.others(), key=lambda each: float(each["started"]))
        return [mine, *others]

    def end(self) -> None:
        """The process ends. In a forked child, which leaves by the same exit handlers: nothing."""
        with self._lock:
            if self.running:
                self.running = False
                self._over.set()
                self._share.end()

    def _run(self, over: threading.Event) -> None:
        while not over.is_set():
            try:
                told = self._tell()
                if any(pool["state"] == "away" for pool in told["pools"]):
                    # Who has no requests would not hear that it is back.
                    for each in list(self._readiness):
                        each.look()
            except Exception:
                logger.exception("the status page does not know how process %d does", os.getpid())
            over.wait(_PAUSE)

    def _tell(self) -> dict[str, Any]:
        document = snapshot.describe(sum(each.requests for each in list(self._guards)))
        with self._lock:
            self._history.note(document["pools"])
            for pool in document["pools"]:
                pool["history"] = self._history.of(pool["name"])
            now = time.time()
            written = self._written
            due = written is None or now - written[0] >= (_SIGN_OF_LIFE if written[1] == document else _PAUSE)
            if due and self.running:
                self._written = now, document
                self._share.write({**document, "written": round(now, 1)})
        return {**document, "written": round(now, 1)}

    def reset(self) -> None:
        """In a forked child."""
        self.running = False
        self._share.close()
        self._forget()
        snapshot.reset()


reporter = Reporter()
fork.on_fork(reporter.reset)
