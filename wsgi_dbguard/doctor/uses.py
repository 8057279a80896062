"""Who could use an object of a module later on: what refers to it, and functions that name its variable.

Example::

    is_only_left_over(shop.session)     # True: no function names it, nothing else keeps it
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType, GeneratorType
from typing import Any

__all__ = ["is_only_left_over"]


def is_only_left_over(thing: object) -> bool:
    """Whether only variables of modules refer to it, and no function names one of these variables.

    A function that gets at it by `getattr` with a text is not seen.
    """
    spaces = {id(vars(each)): vars(each) for each in list(sys.modules.values()) if hasattr(each, "__dict__")}
    if not _is_kept_by_these_only(thing, spaces):
        return False
    return not _is_named(thing, spaces)


def _is_kept_by_these_only(thing: object, spaces: dict[int, dict[str, Any]]) -> bool:
    # No closure here nor in the caller: its cell would refer to the object as well.
    for each in gc.get_referrers(thing):
        # Lists and what is running: where the caller has it from.
        if not isinstance(each, FrameType | GeneratorType | list) and id(each) not in spaces:
            return False
    return True


def _is_named(thing: object, spaces: dict[int, dict[str, Any]]) -> bool:
    names = {name for space in spaces.values() for name, value in list(space.items()) if value is thing}
    homes = {key for key, space in spaces.items() if any(value is thing for value in list(space.values()))}
    for function in [each for each in gc.get_objects() if type(each) is FunctionType]:
        used = set(_names(function.__code__)) if names & set(_names(function.__code__)) else set()
        if not used:
            continue
        space: dict[str, Any] = function.__globals__
        if any(space.get(name) is thing for name in used & names):
            return True
        # As an attribute of its module.
        if any(id(getattr(space.get(name), "__dict__", None)) in homes for name in used):
            return True
    return False


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)
