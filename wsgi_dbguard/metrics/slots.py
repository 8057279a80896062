"""Who writes into which files of a directory that processes share, and whose of them are left by the dead.

Each process has a slot, the lowest number that no living process has, by a lock on ``dbguard-<slot>.lock`` which the
kernel takes back when the process ends, however it ends. So there are never more files than there were processes at one
time, the counters of a worker are carried on by the one that takes its place, and whose gauges are to go is known
without pids, which are used again and mean nothing in another container.

prometheus-client is not needed here: the hooks in a server's master use it, too, and so does `wsgi_dbguard.health` for
files of its own. What is of the living only has ``live`` in its name: gauges, and what the status page shows.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

__all__ = ["Slot", "directory", "forget_gauges", "mark_process_dead", "reap"]


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
        self._pid = os.getpid()
        for number in count():
            descriptor = _take(where, number, os.O_CREAT)
            if descriptor is not None:
                self.number, self._descriptor = number, descriptor
                break
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
        _ours.pop((self.where, self.number, self._pid), None)


# By directory, number and pid: whose lock it is, or whoever asks for it just now.
_ours: dict[tuple[Path, int, int], object] = {}


def _take(where: Path, number: int, flags: int = 0) -> int | None:
    """The locked descriptor of a number; None if somebody else has it, here or elsewhere, or it is another user's.

    Nobody in this process opens a file that somebody else in it has open: to close it would give up the other's lock.
    Without a lock of our own, since the garbage collector may come here in the middle of this.
    """
    key, mine = (where, number, os.getpid()), object()
    if _ours.setdefault(key, mine) is not mine:
        return None
    file = where / f"dbguard-{number}.lock"
    taken = False
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
        taken = _lock(descriptor)
        if not taken:
            os.close(descriptor)
        return descriptor if taken else None
    except PermissionError:
        if not file.exists():  # it is the directory that may not be written
            raise
        return None
    finally:
        if not taken:
            _ours.pop(key, None)


def reap(where: Path) -> None:
    """Remove the gauges of processes that are dead."""
    for file in where.glob("*live*_dbguard-*.*"):
        number = int(file.stem.rpartition("-")[2])
        with suppress(OSError):  # gone, or another user's
            descriptor = _take(where, number)
            if descriptor is not None:
                try:
                    _forget_gauges(where, number)
                finally:
                    os.close(descriptor)
                    _ours.pop((where, number, os.getpid()), None)


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


def _lock(descriptor: int) -> bool:
    # A POSIX lock: a forked child does not have it, and it does not outlive the process in one.
    with suppress(OSError):
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def forget_gauges(slot: Slot | None) -> None:
    """Of this process, which writes them no more."""
    if slot is not None:
        _forget_gauges(slot.where, slot.number)


def _forget_gauges(where: Path, number: int) -> None:
    for file in where.glob(f"*live*_dbguard-{number}.*"):
        file.unlink(missing_ok=True)
