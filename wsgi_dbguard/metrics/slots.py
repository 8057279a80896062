"""Who writes into which files of a directory that processes share, and whose of them are left by the dead.

Each process has a slot, the lowest number that no living process has, by a lock on ``dbguard-<slot>.lock`` which the
kernel takes back when the process ends, however it ends. So there are never more files than there were processes at one
time, the counters of a worker are carried on by the one that takes its place, and whose gauges are to go is known
without pids, which are used again and mean nothing in another container.

prometheus-client is not needed here: the hooks in a server's master use it, too.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

__all__ = ["Slot", "directory", "mark_process_dead", "reap"]


def directory() -> Path | None:
    """What prometheus-client's multiprocess mode shares: ``PROMETHEUS_MULTIPROC_DIR``; None where it is off."""
    path = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(path) if path else None


class Slot:
    """A number that no other living process has, until this one ends.

    Raises:
        OSError: if the directory is not there, or may not be written.
    """

    def __init__(self, where: Path) -> None:
        self.where = where
        for number in count():
            if _is_ours(where, number):
                continue
            descriptor = os.open(_lock_file(where, number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if _lock(descriptor):
                break
            os.close(descriptor)
        self.number, self._descriptor, self._pid = number, descriptor, os.getpid()
        _ours.add((where, number, self._pid))
        _forget_gauges(where, number)  # of the one who had it before

    @property
    def name(self) -> str:
        """What the files of this slot have in their names."""
        return f"dbguard-{self.number}"

    def close(self) -> None:
        """Let another process have it; counters stay, gauges go. In a forked child: it never was the child's."""
        if self._pid == os.getpid():
            _forget_gauges(self.where, self.number)
        os.close(self._descriptor)
        _ours.discard((self.where, self.number, self._pid))


_ours: set[tuple[Path, int, int]] = set()  # directory, number, pid


def _is_ours(where: Path, number: int) -> bool:
    # To open its file and close it again would give up the lock.
    return (where, number, os.getpid()) in _ours


def reap(where: Path) -> None:
    """Remove the gauges of processes that are dead."""
    for file in where.glob("gauge_live*_dbguard-*.db"):
        number = int(file.stem.rpartition("-")[2])
        if _is_ours(where, number):
            continue
        try:
            descriptor = os.open(_lock_file(where, number), os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # another user's
            continue
        try:
            if _lock(descriptor):
                _forget_gauges(where, number)
        finally:
            os.close(descriptor)


def mark_process_dead(pid: int | None = None) -> None:
    """The process has ended: remove its gauges, and those of others that are dead; None: only these.

    By the process itself as well, as its last act. Ours, and those that the application's own metrics left, as
    ``prometheus_client.multiprocess.mark_process_dead`` does. That one is not called: a master would have to import
    what only its workers use. Where multiprocess mode is off, nothing.
    """
    where = directory()
    if where is not None:
        if pid is not None:
            for file in where.glob(f"gauge_live*_{pid}.db"):
                file.unlink(missing_ok=True)
            for _, number, owner in list(_ours):
                if owner == pid:
                    _forget_gauges(where, number)
        reap(where)


def _lock_file(where: Path, number: int) -> Path:
    return where / f"dbguard-{number}.lock"


def _lock(descriptor: int) -> bool:
    # A POSIX lock: a forked child does not have it, and it does not outlive the process in one.
    with suppress(OSError):
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _forget_gauges(where: Path, number: int) -> None:
    for file in where.glob(f"gauge_live*_dbguard-{number}.db"):
        file.unlink(missing_ok=True)
