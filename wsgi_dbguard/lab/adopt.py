"""A parent for servers that replace themselves, run as a script: ``python adopt.py program argument…``.

A gunicorn master that gets SIGUSR2 starts a new one, and when it ends the new one has lost its parent. This process
takes it in (PR_SET_CHILD_SUBREAPER, prctl(2)), so that whoever started this process finds all of them below it. It
passes SIGTERM on to its own children, and ends when the last of them has, with the exit code of that one.

Only the standard library is imported: the server below must not differ from one that was started without this.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                # proc_pid_stat(5): the command name may hold blanks and brackets, the parent comes after it
                text = Path(f"/proc/{name}/stat").read_text(errors="replace")
                if int(text.rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def pass_on(number: int, frame: object) -> None:
    for pid in children():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def main(argv: list[str]) -> int:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # Before the child is there to be forgotten. It does not inherit a handler: exec sets it back.
    signal.signal(signal.SIGTERM, pass_on)
    os.posix_spawn(argv[0], argv, os.environ)
    code = 0
    while True:
        try:
            _, status = os.wait()
        except ChildProcessError:
            return code
        code = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
