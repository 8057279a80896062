"""Regular expressions that most processes have no use for: each is compiled when it is used for the first time.

To compile those of this package takes 5 ms, of every worker's start. What each request needs is compiled at once
(`re.compile`), so that the first one does not wait for it. Nothing is imported here at that time, and no lock is taken:
it may be in the handler of a signal, or in a forked child.

Example::

    _NUMBER = lazily(r"-?\\d+")
    _NUMBER.fullmatch("12")
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["lazily"]


class _Lazy:
    """As good as a compiled pattern, where its methods are all that is asked for."""

    def __init__(self, pattern: str, flags: int) -> None:
        self._pattern = pattern
        self._flags = flags

    def __getattr__(self, name: str) -> Any:  # of what is not there yet
        method = getattr(re.compile(self._pattern, self._flags), name)
        setattr(self, name, method)
        return method


def lazily(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """What `re.compile` returns, compiled when one of its methods is first looked up; a mistake in it shows then."""
    return _Lazy(pattern, flags)  # type: ignore[return-value]
