"""The thread that closes idle connections whose time is up, also in a process that nobody asks anything.

One daemon thread for all guards of a process, started when the first connection is opened and gone soon after the
last guard. A `threading.Thread` on purpose: under gevent it is a greenlet, and closing a connection of a patched driver
is the event loop's business. In a forked child it does not exist; the child's first connection starts one of its own.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING

from . import fork

if TYPE_CHECKING:
    from .pool import PoolGuard

__all__ = ["ensure"]

logger = logging.getLogger(__name__)


class _Housekeeper:
    """The thread, and what wakes it. Made when it is needed: gevent may patch after this module was imported."""

    def __init__(self) -> None:
        # A new guard came, and its limits may be shorter than the pause.
        self.wake = threading.Event()
        self.thread = threading.Thread(target=self.run, name="wsgi_dbguard.housekeeping", daemon=True)

    def run(self) -> None:
        global _housekeeper
        while True:
            self.wake.clear()
            with _lock:
                guards = list(_guards)
                if not guards:
                    _housekeeper = None
                    return
            for guard in guards:
                try:
                    guard.sweep()
                except Exception:
                    logger.exception("housekeeping of %s failed", guard.name)
            pause = _interval(guards)
            del guards, guard  # not to keep them alive over the pause
            self.wake.wait(pause)


_guards: weakref.WeakSet[PoolGuard] = weakref.WeakSet()
# The interpreter's own lock where this was imported before gevent patched: nothing under it may switch greenlets.
_lock = threading.Lock()
_housekeeper: _Housekeeper | None = None


def ensure(guard: PoolGuard) -> None:
    """See to it that `guard` is swept from time to time."""
    global _housekeeper
    if guard.config.max_lifetime is None and guard.config.idle_timeout is None:
        return
    with _lock:
        known = guard in _guards
        _guards.add(guard)
        running, housekeeper = _housekeeper is not None, _housekeeper or _Housekeeper()
        _housekeeper = housekeeper
    if running:
        if not known:
            housekeeper.wake.set()
        return
    try:
        # Not under the lock: under gevent it runs the new greenlet at once, and that wants the lock.
        housekeeper.thread.start()
    except RuntimeError as error:  # out of threads, or the interpreter ends: no reason to refuse a connection
        _housekeeper = None
        logger.info("no housekeeping in this process: %s", error)


def _interval(guards: list[PoolGuard]) -> float:
    """Seconds until the next round: often enough that a limit is overrun by a tenth, half a minute at most."""
    limits = [each for guard in guards for each in (guard.config.idle_timeout, guard.config.max_lifetime) if each]
    return max(0.05, min([300.0, *limits]) / 10)


def _after_fork() -> None:
    global _housekeeper, _lock
    _housekeeper = None
    _lock = threading.Lock()


fork.on_fork(_after_fork)
