"""SIGABRT, by which gunicorn ends a worker that took too long, seen while the main thread is in a driver written in C.

Python calls the handler of a signal in the main thread, between two of its instructions. A main thread that waits in
psycopg2 or mysqlclient comes to none, and gunicorn kills the worker a second later: its query goes on in the server.
But the interpreter also writes the number of each signal to a descriptor, at once (`signal.set_wakeup_fd`). Here a real
thread reads those, passes them on to the descriptor that was set before (gunicorn's own), and stops the queries of the
process when SIGABRT is among them. SIGTERM is noted as well: the worker is about to end (`worker`).

Example::

    listen()        # in the main thread, when whoever wants the wake-up descriptor as well has set it
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress

from . import canceller, fork, worker
from .unpatched import original

__all__ = ["listen"]

logger = logging.getLogger(__name__)

_ours: tuple[int, int, int] | None = None  # the pipe's ends, and the descriptor that was set before


def listen() -> None:
    """Begin. At the second call, nothing.

    Raises:
        ValueError: outside the main thread, as `signal` has it.
    """
    global _ours
    if _ours is not None:
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    except ValueError:
        os.close(writing)
        os.close(reading)
        raise
    _ours = reading, writing, before
    try:
        original("_thread", "start_new_thread")(_relay, (reading, before))
    except RuntimeError as error:  # out of threads
        logger.info("process %d does not see SIGABRT in a query: %s", os.getpid(), error)
        _stop()


def _relay(reading: int, before: int) -> None:
    while True:
        try:
            numbers = os.read(reading, 512)
        except OSError:
            return
        if not numbers:
            return
        if before >= 0:
            with suppress(OSError):  # full: its reader is awake anyway
                os.write(before, numbers)
        if signal.SIGTERM in numbers:
            worker.end()
        if signal.SIGABRT in numbers:
            canceller.abort()


def _stop() -> None:
    """Set things as they were. In a forked child the pipe is the parent's, who would take the child's signals for its
    own."""
    global _ours
    if _ours is None:
        return
    reading, writing, before = _ours
    _ours = None
    with suppress(ValueError, OSError):  # not the main thread: no signal of this process comes here either
        current = signal.set_wakeup_fd(before)
        if current != writing:  # somebody else's by now, such as asyncio's
            signal.set_wakeup_fd(current)
    os.close(writing)
    os.close(reading)


fork.on_fork(_stop)
