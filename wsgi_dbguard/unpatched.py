"""The standard library as the interpreter made it, under gevent as well.

gevent's monkey patching turns `select.poll`, threads and locks into things that switch greenlets. The guard's check
must not switch, and its watchdog must run while a C driver blocks the whole event loop: both take the originals. Looked
up when called, since an application is often patched after this package was imported.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["original"]


def original(module: str, name: str) -> Any:
    """`module.name` before any patching, such as ``original("select", "poll")``; of a module without a dot."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(__import__(module), name)
