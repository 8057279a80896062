"""Whether a statement may change something on its connection that outlives the transaction: a cheap look at its text.

What it changes `changes` tells, which is imported when a statement was found that may change anything: the statements
of most applications do not.

Example::

    touches("SET search_path TO tenant")    # True
    touches("select 1")                     # False
"""

from __future__ import annotations

import re
from functools import lru_cache

from .patterns import lazily

__all__ = ["ANYTHING", "LONGEST", "touches", "touches_long"]

ANYTHING = "anything"  # a change that is not to be put right
LONGEST = 4096  # characters: a longer statement is full of data, and not worth its place in a cache

_WORDS = (
    r"(?:set|reset|use|discard|listen|unlisten|lock|unlock|flush|prepare|deallocate|declare|close|commit|end|rollback"
    r"|abort|drop|do|call|get|load|execute\s+immediate|begin\s+not)\b"
)
_TOUCHES = re.compile(
    rf"""(?:^|;|\*/|/\*M?!\d*+)(?:\s|--[^\n\r]*+|\#[^\n]*+)*+{_WORDS}
    | \b(?:pg_)?temp(?:orary|_\d+)?\b | \bset_config\b | _advisory_(?:un)?lock | \b(?:get|release)_lock
    | \brelease_all_locks | \bpg_settings\b | \binto\s*+(?:@|/\*|--|\#) | :=""",
    re.IGNORECASE | re.VERBOSE,
)
_BEGINS = lazily(rf"(?:\s|/\*(?!M?!)(?:[^*]++|\*(?!/))*+\*/|--[^\n\r]*+|\#[^\n]*+)*+{_WORDS}", re.IGNORECASE)
_MARKS = (";", "@", "/*!", "/*m!", "temp", "set_config", "_advisory_lock", "get_lock", "pg_settings")


def touches(statement: str) -> bool:
    """Whether `statement` may change such a thing: a cheap look, to be followed by `changes.changes`."""
    # Optimization: SQLAlchemy sends the same few texts again and again. To search a long one is dear.
    return _touches(statement) if len(statement) <= LONGEST else touches_long(statement)


@lru_cache(maxsize=512)
def _touches(statement: str) -> bool:
    return _TOUCHES.search(statement) is not None


def touches_long(statement: str) -> bool:
    """The same for a text that is longer than LONGEST."""
    lower = statement.lower()
    return any(mark in lower for mark in _MARKS) or _BEGINS.match(statement) is not None
