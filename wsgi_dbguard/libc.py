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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ctypes

__all__ = ["function"]


@functools.cache
def _library() -> ctypes.PyDLL | None:
    if sys.platform != "linux":
        return None
    try:
        import ctypes  # here: it takes two milliseconds, and who opens no connection can do without

        return ctypes.PyDLL(None)
    except (ImportError, OSError):
        return None


def function(name: str) -> Any:
    """The function of that name, an object of the caller's own, that returns an int; None where there is none.

    So it is on other systems than Linux, and where Python has no ctypes.
    """
    library = _library()
    if library is None:
        return None
    try:
        return library[name]
    except AttributeError:
        return None
