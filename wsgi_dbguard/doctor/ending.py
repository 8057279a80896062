"""The end of the process that imports the application, and of all that it has started, in whatever session.

What it starts inherits its environment, and with it a mark that no other process has: it is found though its parent has
ended. What was started with an environment of its own is found by its parents, while they live.

Example::

    mark = new_mark()
    process = subprocess.Popen(command, env=os.environ | mark, start_new_session=True)
    end(process.pid, mark)
"""

from __future__ import annotations

import ctypes
import os
import signal
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["end", "end_with_parent", "new_mark"]

_MARK = "DOCTOR_OF_WSGI_DBGUARD"
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_ROUNDS = 5  # looks at all processes: one that is looked for may just be forking


def new_mark() -> dict[str, str]:
    """A variable of the environment that no other process has."""
    return {_MARK: uuid.uuid4().hex}


def end_with_parent(parent: int) -> None:
    """From now on this process is killed when the thread that started it ends; at once if process `parent` is gone."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def end(pid: int, mark: Mapping[str, str]) -> None:
    """Kill the group of `pid`, which is a child that was not waited for, its descendants, and whoever has the mark."""
    needle = f"{_MARK}={mark[_MARK]}".encode()
    for _ in range(_ROUNDS):
        found = _descendants(pid) | _marked(needle)
        for each in found - {pid}:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if not found - {pid}:
            return


def _descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for each in _processes():
        with suppress(OSError, ValueError):
            # After the name, which may hold anything, in parentheses: state and parent.
            state, parent = (each / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(each.name))
    found: set[int] = set()
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        queue += below
        found.update(below)
    return found


def _marked(needle: bytes) -> set[int]:
    found = set()
    for each in _processes():
        with suppress(OSError):  # another user's, or gone
            if needle in (each / "environ").read_bytes().split(b"\0"):
                found.add(int(each.name))
    return found


def _processes() -> list[Path]:
    return [each for each in Path("/proc").iterdir() if each.name.isdecimal()]
