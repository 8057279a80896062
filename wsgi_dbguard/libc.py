"""Functions of the C library that wait for nothing, called without letting go of the interpreter's lock.

Python lets go of it around each system call, since most wait. One that does not is done before another thread has taken
the lock; but a thread that waits for it has been woken, finds it taken, and goes back to sleep. Where several threads
have work to do, such as gunicorn's gthread, a ``poll`` of half a microsecond costs some ten in this way. The threads of
a server that is not busy do not notice.

Example::

    getpid = function("getpid")
    if getpid is not None:
        assert getpid() == os.getpid()
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["function", "reference"]


@functools.cache
def _library() -> Callable[[str], Any] | None:
    """What finds a function by its name.

    Made of what ctypes is made of: each of its own types costs memory, 150 KiB in all, and its import two milliseconds.
    """
    if sys.platform != "linux":
        return None
    try:
        import _ctypes

        class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
            _type_ = "i"

        class Function(_ctypes.CFuncPtr):
            _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI  # as of ctypes.PyDLL
            _restype_ = Int

        this = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    except (ImportError, AttributeError, OSError):
        return None
    return lambda name: Function(_ctypes.dlsym(this, name))


def function(name: str) -> Any:
    """The function of that name, an object of the caller's own, that returns an int; None where there is none.

    So it is on other systems than Linux, and where Python has no ctypes.
    """
    find = _library()
    if find is None:
        return None
    try:
        return find(name)
    except OSError:
        return None


def reference(content: bytes) -> Any:
    """For a function, a pointer to memory of its own that holds `content`."""
    import _ctypes

    return _ctypes.byref((_char() * len(content)).from_buffer_copy(content))


@functools.cache
def _char() -> Any:
    import _ctypes

    class Char(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "c"

    return Char
