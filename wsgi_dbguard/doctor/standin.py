"""Modules that exist only inside of uWSGI, as far as an import needs them: `uwsgi` and `uwsgidecorators`.

Whatever is called does nothing. Functions that are to be run after the fork are remembered.

Example::

    install({"processes": b"2"})
    import uwsgidecorators
    forked()            # what postfork has decorated
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

__all__ = ["forked", "install"]

_forked: list[Callable[..., Any]] = []
# Decorators that take the function itself; all others are called with arguments first.
_PLAIN = ("postfork", "spool", "spoolforever", "spoolraw", "lock", "thread")


class _Server(ModuleType):
    """`uwsgi`: a function for each name that is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name.endswith("_hook"):
            raise AttributeError(name)
        return _nothing


class _Decorators(ModuleType):
    """`uwsgidecorators`: the functions stay as they are, except that a thread is not started."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _plain(name) if name in _PLAIN else lambda *args, **keywords: _same


def install(options: Mapping[str, bytes]) -> None:
    """Put the modules where an import finds them. `options`: uWSGI's `uwsgi.opt`."""
    server = _Server("uwsgi", "The stand-in of wsgi_dbguard.doctor.")
    server.__dict__.update(
        opt=dict(options), version=b"", numproc=1, applications={}, masterpid=os.getppid, worker_id=lambda: 0
    )
    sys.modules["uwsgi"] = server
    sys.modules["uwsgidecorators"] = _Decorators("uwsgidecorators", "The stand-in of wsgi_dbguard.doctor.")


def forked() -> list[Callable[..., Any]]:
    """What is to be run in a worker after the fork."""
    hook = getattr(sys.modules.get("uwsgi"), "post_fork_hook", None)
    return [*_forked, *([hook] if callable(hook) else [])]


def _nothing(*args: Any, **keywords: Any) -> None:
    return None


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _plain(name: str) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any] | None = None, **keywords: Any) -> Any:
        if function is None:
            return decorate
        if name == "postfork":
            _forked.append(function)
        return _nothing if name == "thread" else function

    return decorate
