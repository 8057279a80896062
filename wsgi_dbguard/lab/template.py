"""A data directory is made once or twice in a process, and copied for all its other servers, in a tenth of the time.

The copy is taken when a second server of a kind is made, so that who starts one does not pay for two. It is removed
when the process ends.

Example::

    fill(directory, ("PostgreSQL", installation), initdb)
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path

from .process import keep, remove_at_death

__all__ = ["fill"]

_made: dict[tuple[int, Hashable], Path | None] = {}  # by pid and kind; None: once, and there is no copy yet


def fill(directory: Path, kind: Hashable, make: Callable[[], object]) -> None:
    """Fill an empty directory by `make`, or with a copy of what that made in another one for the same `kind`.

    Raises what `make` raises, subprocess.CalledProcessError if it cannot be copied.
    """
    owner = os.getpid()
    key = owner, kind
    if template := _made.get(key):
        _copy(template, directory)
        return
    make()
    if key not in _made:
        _made[key] = None
        return
    template = Path(tempfile.mkdtemp(prefix="dbguard-"))
    remove_at_death(template)
    atexit.register(_remove, owner, template)
    _copy(directory, template)
    _made[key] = template


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", f"{source}/.", target], check=True)  # with its owner; shutil needs twice the time


def _remove(owner: int, template: Path) -> None:
    if os.getpid() == owner:  # a forked process runs the same exit handlers
        shutil.rmtree(template, ignore_errors=True)
        keep(template)
