"""The files that prometheus-client's multiprocess mode reads, written without its locks and on blocks that are there.

prometheus-client makes a file without blocks and maps it: on a full filesystem the kernel then kills the process that
writes (SIGBUS); and who reads it before it has its size fails. Here a file appears with its whole size, and no part of
it is mapped that the filesystem has not promised: what it cannot give is an OSError.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

__all__ = ["SIZE", "File"]

SIZE = 1 << 16  # bytes of a new file, prometheus-client's own; it doubles when it is full
_BESIDE_THE_KEY = 4 + 8 + 16  # bytes of a value: its length, what fills it up, two numbers


class File:
    """Numbers by key, in one file. Not for two threads at once.

    Raises:
        OSError: if the file cannot be made or made longer, ENOSPC if there is no room.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            _make(path)
        self._numbers = MmapedDict(str(path))  # type: ignore[no-untyped-call]

    def get(self, key: str) -> float:
        """The number; 0 where there was none."""
        numbers = self._numbers
        if key not in numbers._positions:
            needed = numbers._used + len(key.encode()) + _BESIDE_THE_KEY
            size = numbers._capacity
            while size < needed:
                size *= 2
            if size > numbers._capacity:
                _allocate(numbers._f.fileno(), numbers._capacity, size)
        return float(numbers.read_value(key)[0])  # type: ignore[no-untyped-call]

    def set(self, key: str, number: float) -> None:
        """Of one that `get` has been asked for."""
        self._numbers.write_value(key, number, 0.0)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Let go of it."""
        self._numbers.close()  # type: ignore[no-untyped-call]


def _make(path: Path) -> None:
    unnamed = path.with_suffix(".new")  # who reads wants *.db
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        _allocate(descriptor, 0, SIZE)
        unnamed.rename(path)
    except BaseException:
        unnamed.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, start: int, end: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, end - start)
        return
    while start < end:  # macOS
        start += os.pwrite(descriptor, bytes(end - start), start)
