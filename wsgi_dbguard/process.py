"""Is this still the process that it was? Told by a byte in memory, without a system call.

``here[0]`` is true in the process that imported this module, and false in every child that was forked since, until
`claim` is called there. The byte lies in a page that Linux (4.14 and later) hands to a child filled with zeros:
madvise(2), MADV_WIPEONFORK. Reading it takes a tenth of what ``os.getpid()`` takes, which no libc caches any more, and
it is right where a pid is not: in a PID namespace of its own a child may have the very pid of its parent. Where the
system has no such pages the pid is compared.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class Here(Protocol):
        """A row of one byte."""

        def __getitem__(self, index: int) -> int: ...
        def __setitem__(self, index: int, value: int) -> None: ...


__all__ = ["claim", "here"]

_WIPE_ON_FORK = 18  # MADV_WIPEONFORK in <linux/mman.h>; the module mmap does not name it
_NO_ADVICE = -1


class _ByPid:
    """The same by the pid."""

    def __getitem__(self, index: int) -> int:
        return os.getpid() == self._pid

    def __setitem__(self, index: int, value: int) -> None:
        self._pid = os.getpid()


def _page() -> Here:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (AttributeError, OSError, ValueError):  # no such advice, or no madvise at all
        return _ByPid()
    # Emulators such as qemu's have taken any advice for a hint, said yes, and done nothing. BoringSSL, which keeps its
    # random numbers apart by the same means, asks as well what nobody can say yes to (crypto/.../fork_detect.cc).
    try:
        page.madvise(_NO_ADVICE)
    except (OSError, ValueError):
        return page
    return _ByPid()


def claim() -> None:
    """From now on this process is the one that it was."""
    here[0] = 1


here = _page()
claim()
