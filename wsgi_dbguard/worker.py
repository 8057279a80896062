"""This process as a worker of its server: that it begins to serve, and that it was told to end. The hooks tell.

No handler of a signal is set here, nor anywhere in this package: servers have their own. gunicorn's workers hear of
SIGTERM by way of `aborts`, which reads the interpreter's wake-up descriptor. uWSGI's workers take no request any more
from the moment that they are told to end, so there is nobody left to say that.

Example::

    on_serving(reporter.start)
    serving()                       # by a hook, in the worker
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from . import fork

__all__ = ["end", "is_ending", "on_serving", "serving"]

logger = logging.getLogger(__name__)

_listeners: list[Callable[[], object]] = []
_serving = False
_ending = False


def on_serving(listener: Callable[[], object]) -> None:
    """Call `listener` when this process begins to serve: at once if it has, and in each process forked from it."""
    if listener not in _listeners:
        _listeners.append(listener)
        if _serving:
            listener()


def serving() -> None:
    """The process is a worker and begins to serve. Never raises: it is called by servers' hooks."""
    global _serving
    _serving = True
    for listener in _listeners:
        try:
            listener()
        except Exception:
            logger.exception("%r failed", listener)


def end() -> None:
    """The process was told to end, and finishes what it has begun."""
    global _ending
    _ending = True


def is_ending() -> bool:
    """Whether it was."""
    return _ending


def _after_fork() -> None:
    global _serving, _ending
    _serving = _ending = False


fork.on_fork(_after_fork)
