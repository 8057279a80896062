"""The thread that keeps the figures of this worker, and shares them with the others: one for all guards of a process.

It looks once a second, and writes only what has changed. It begins when the server's hooks say that this process is a
worker, and without them with its first request: a master that only forks is no worker. In a forked child it does not
exist until then.
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
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._share = Share()
        self._history = snapshot.History()
        self._written: tuple[float, dict[str, Any]] | None = None

    def install(self, guard: _Counting) -> None:
        """Count the requests of this `DBGuard`, too."""
        self._guards.add(guard)
        events.keep()
        worker.on_serving(self.begin)

    def begin(self) -> None:
        """This process is a worker. At the second call, nothing."""
        with self._lock:
            if self.running:
                return
            self.running = True
        atexit.register(self._end, os.getpid())
        try:
            threading.Thread(target=self._run, name="wsgi_dbguard.health", daemon=True).start()
        except RuntimeError as error:  # out of threads, or the interpreter ends
            logger.info("the status page has no history of process %d: %s", os.getpid(), error)

    def workers(self) -> list[dict[str, Any]]:
        """All workers of this server that live, this one first, then by age."""
        mine = self._tell()
        others = sorted(self._share.others(), key=lambda each: float(each["started"]))
        return [mine, *others]

    def _run(self) -> None:
        pid = os.getpid()
        pause = threading.Event()
        while pid == os.getpid():
            try:
                self._tell()
            except Exception:
                logger.exception("the status page does not know how process %d does", pid)
            pause.wait(_PAUSE)

    def _tell(self) -> dict[str, Any]:
        document = snapshot.describe(sum(each.requests for each in list(self._guards)))
        with self._lock:
            self._history.note(document["pools"])
            for pool in document["pools"]:
                pool["history"] = self._history.of(pool["name"])
            now = time.time()
            written = self._written
            if (
                written is None
                or (written[1] != document and now - written[0] >= _PAUSE)
                or (now - written[0] >= _SIGN_OF_LIFE)
            ):
                self._written = now, document
                self._share.write({**document, "written": round(now, 1)})
        return {**document, "written": round(now, 1)}

    def _end(self, pid: int) -> None:
        if pid == os.getpid():
            self._share.end()

    def reset(self) -> None:
        """In a forked child."""
        self.running = False
        self._share.close()
        self._forget()
        snapshot.reset()


reporter = Reporter()
fork.on_fork(reporter.reset)
