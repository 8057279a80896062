"""What an application does in its workers after the fork, by the code of its hooks. None of it is called.

Example::

    cuts(lambda: engine.dispose(close=False))       # True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

__all__ = ["cuts"]


def cuts(hook: Callable[..., Any]) -> bool:
    """Whether the hook itself has a call such as ``engine.dispose(close=False)``: SQLAlchemy's recipe."""
    code = getattr(hook, "__code__", None)
    for each in _nested(code) if isinstance(code, CodeType) else ():
        if "dispose" in each.co_names and ("close",) in each.co_consts and False in each.co_consts:
            return True
    return False


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _nested(each)
