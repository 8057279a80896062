"""What the workers of one server tell each other: each writes a small file, any of them reads all. No network.

The files lie in a directory that only this user can read, in memory where there is ``/dev/shm``. Its name is that of
the server's first process, which has forked the workers: so they find each other without anybody telling them. A
worker's file goes when it ends; of one that was killed, when somebody reads (`slots`: a lock that the kernel takes
back). The directories of servers that are gone are removed by the next worker that starts.

Example::

    share = Share()
    share.write({"pid": os.getpid()})
    share.others()                              # [{"pid": ...}, ...]
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from wsgi_dbguard import __version__
from wsgi_dbguard.metrics import slots

__all__ = ["Share"]

logger = logging.getLogger(__name__)

_PREFIX = "wsgi-dbguard-"


class Share:
    """The directory, and this process's file in it. Never raises: without one, a worker tells of itself alone."""

    def __init__(self) -> None:
        self._slot: slots.Slot | None = None
        self._told = False

    def write(self, document: dict[str, Any]) -> None:
        """Let the others know."""
        try:
            if self._slot is None:
                self._slot = slots.Slot(_directory())
            file = self._slot.where / f"live_{self._slot.name}.new"
            file.write_text(json.dumps({"version": __version__, **document}))
            file.rename(file.with_suffix(".json"))
        except OSError as error:
            self.close()  # it may be better next time, such as in a directory that was removed
            if not self._told:
                self._told = True
                logger.warning("process %d: the status page shows no other workers: %s", os.getpid(), error)

    def others(self) -> list[dict[str, Any]]:
        """What the other living workers wrote last."""
        slot = self._slot
        if slot is None:
            return []
        documents = []
        with suppress(OSError):
            slots.reap(slot.where)
            for file in slot.where.glob("live_dbguard-*.json"):
                if file.stem != f"live_{slot.name}":
                    with suppress(OSError, ValueError):  # it has just ended
                        document = json.loads(file.read_text())
                        # A reload after an upgrade: what the old ones write means another thing.
                        if document.pop("version", None) == __version__:
                            documents.append(document)
        return documents

    def close(self) -> None:
        """This process has nothing to tell any more. In a forked child: it never had."""
        slot, self._slot = self._slot, None
        if slot is not None:
            with suppress(OSError):
                slot.close()

    def end(self) -> None:
        """This process is the one to tell, and ends; the last one takes the directory with it."""
        slot = self._slot
        self.close()
        if slot is not None:
            with suppress(OSError):
                _remove(slot.where)


def _directory() -> Path:
    """Of the workers of this server, made if it is not there.

    Raises:
        OSError: if it cannot be made, or is somebody else's.
    """
    base = Path("/dev/shm")
    if not os.access(base, os.W_OK | os.X_OK):
        base = Path(tempfile.gettempdir())
    _clear(base)
    where = base / _name(_owner())
    with suppress(FileExistsError):
        where.mkdir(0o700)
    if not _is_ours(where):
        raise PermissionError(f"{where} is not a directory of this user alone")
    return where


def _name(owner: int) -> str:
    return f"{_PREFIX}{os.geteuid()}-{owner}-{_started(owner)}"


def _is_ours(where: Path) -> bool:
    """Anybody can make a directory of such a name, or a link."""
    found = where.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _owner() -> int:
    """The first process of this server: the parent, if this one is its worker, else this one."""
    parent = os.getppid()
    with suppress(OSError):  # in another namespace
        if os.getpgid(parent) == os.getpgrp() and _is_worker_of(parent):
            return parent
    return os.getpid()


def _is_worker_of(parent: int) -> bool:
    """Whether it is no program of its own, such as one of several servers that a script has started."""
    mine, its = _layout(os.getpid()), _layout(parent)
    # A worker that is not forked is `multiprocessing`'s.
    return mine is None or its is None or mine == its or multiprocessing.parent_process() is not None


def _layout(pid: int) -> bytes | None:
    """Where the kernel has put a process's program: random for each, and kept by a fork. None where it is not told, as
    of a master that is root."""
    try:
        return Path(f"/proc/{pid}/auxv").read_bytes() or None
    except OSError:
        return None


def _started(pid: int) -> str:
    """When a process began, so that another one with its number is not taken for it; "0" where nobody tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def _clear(base: Path) -> None:
    """Remove what servers of this user have left that are gone."""
    for where in base.glob(f"{_PREFIX}{os.geteuid()}-*-*"):
        _, _, name = where.name.partition(f"-{os.geteuid()}-")
        owner, _, started = name.partition("-")
        if owner.isdecimal() and _started(int(owner)) != started:
            with suppress(OSError):
                if _is_ours(where):
                    _remove(where)


def _remove(where: Path) -> None:
    """Unless there is a living worker. One that just begins makes it anew."""
    slots.reap(where)
    if not list(where.glob("live_*")):
        shutil.rmtree(where)
