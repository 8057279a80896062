"""Child processes that never outlive the process that started them.

Demo, tests and benchmarks start real servers: PostgreSQL, gunicorn, uWSGI. `Child` starts one in a session of its own
(so that Ctrl-C reaches only the owner), with its output in a file, and ends it with everything it forked. Three nets
are spread below it: `stop()`, `atexit`, and for owners that are killed outright a guardian process, which ends what
was left behind and removes the directories it was told of.

PR_SET_PDEATHSIG would do that without a process more, but it is sent when the *thread* that forked the child ends
(prctl(2)): a server restarted by a short-lived thread would die with it. The guardian waits for the whole process.

Linux only: it reads /proc. Not for long-lived services, which belong to a service manager.

Example::

    with Child([sys.executable, "-m", "http.server", "8000"], log=directory / "http.log") as server:
        wait_until(lambda: "Serving" in server.output(), timeout=10, what="the server")
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

__all__ = ["Child", "abandon", "descendants", "gone", "keep", "remove_at_death", "wait_until"]

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, timeout: float, what: str, interval: float = 0.01) -> T:
    """Call `condition` every `interval` seconds until it returns something true, and return that.

    Raises TimeoutError after `timeout` seconds, with `what` was waited for. Exceptions of `condition` pass through.
    """
    deadline = time.monotonic() + timeout
    while True:
        if result := condition():
            return result
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(interval)


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process, from /proc/<pid>/stat (proc(5)); None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent = text.rpartition(")")[2].split()[:2]  # the command name before may hold blanks and brackets
    return state, int(parent)


def gone(pid: int) -> bool:
    """Whether the process has ended and its sockets are closed; a zombie has and they are."""
    stat = _stat(pid)
    return stat is None or stat[0] in "ZX"


def descendants(pid: int) -> list[int]:
    """Process ids of the children of `pid`, their children and so on, parents first; zombies left out."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (stat := _stat(int(name))) and stat[0] not in "ZX":
            children.setdefault(stat[1], []).append(int(name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _freeze(pid: int) -> list[int]:
    """SIGSTOP `pid` and all below it; returns them, root first.

    A process that is not stopped yet may fork behind our back: look again until a look finds nobody new.
    """
    frozen: list[int] = []
    for _ in range(20):
        fresh = [found for found in [pid, *descendants(pid)] if found not in frozen]
        if not fresh:
            break
        _signal(fresh, signal.SIGSTOP)
        frozen += fresh
    return frozen


class Child:
    """A running child process.

    `argv`: the command; `log`: file its stdout and stderr are appended to; `stdin`: file it reads (default: nothing);
    `env`: its whole environment (default: a copy of ours); `cwd`: its working directory; `user`, `group`: numeric ids
    to run as (needs root); `stop_signal`: what asks this program to end, also when its owner was killed.

    Raises OSError (such as FileNotFoundError) when the program cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        log: Path,
        stdin: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: int | None = None,
        group: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.log = log
        self._name = Path(argv[0]).name
        self.stop_signal = stop_signal
        self._owner = os.getpid()
        with open(log, "ab") as output, open(stdin or os.devnull, "rb") as given:
            self._process = subprocess.Popen(
                argv,
                stdin=given,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
                start_new_session=True,
            )
        self.pid = self._process.pid
        _guardian.tell("guard", self.pid, int(stop_signal))
        atexit.register(self._at_exit)
        self._guarded = True

    def __repr__(self) -> str:
        state = "running" if (code := self._process.returncode) is None else f"ended with {code}"
        return f"<Child {self._name} pid={self.pid} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._at_exit()

    def _at_exit(self) -> None:
        if os.getpid() == self._owner:  # a forked process leaves its parent's `with` blocks and runs its exit handlers
            self.stop()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet, be it paused; a process forked from its owner may ask as well."""
        return self.poll() is None if os.getpid() == self._owner else not gone(self.pid)

    def poll(self) -> int | None:
        """Its exit code (minus the signal's number if one ended it), or None while it runs. For its owner only."""
        code = self._process.poll()
        if code is not None:
            self._forget()
        return code

    def wait(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for it to end, and return its exit code. Raises TimeoutError."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self!r} did not end within {timeout:g} s") from None
        self._forget()
        return code

    def _forget(self) -> None:
        if self._guarded:  # once: the number may be another child's by now
            self._guarded = False
            atexit.unregister(self._at_exit)
            _guardian.tell("forget", self.pid)

    def send(self, number: int) -> None:
        """Send a signal to the child, not to its children. Nothing happens when it has ended."""
        if self.running:
            _signal([self.pid], number)

    def stop(self, number: signal.Signals | None = None, *, timeout: float = 10.0) -> int:
        """Ask it to end (`number`, else its `stop_signal`), also when paused; `kill()` after `timeout` seconds.

        Returns the exit code; ended children answer with theirs.
        """
        if self.poll() is None:
            self.send(number or self.stop_signal)
            self.resume()
            try:
                return self.wait(timeout)
            except TimeoutError:
                self.kill()
        return self.wait(0)

    def kill(self) -> list[int]:
        """SIGKILL it and every process below it at once; returns their pids when all are gone."""
        if self.poll() is not None:
            return []
        # Frozen first: otherwise children would see their parent die and clean up, or fork anew.
        pids = _freeze(self.pid)
        _signal(pids, signal.SIGKILL)
        self.wait(60.0)
        wait_until(lambda: all(map(gone, pids)), timeout=60.0, what=f"the end of {pids}", interval=0.002)
        return pids

    def pause(self) -> list[int]:
        """SIGSTOP it and every process below it; returns their pids."""
        return _freeze(self.pid) if self.running else []

    def resume(self) -> None:
        """SIGCONT it and every process below it."""
        if self.running:
            _signal([*reversed(descendants(self.pid)), self.pid], signal.SIGCONT)

    def output(self, last: int | None = None) -> str:
        """What it wrote so far: all, or the `last` lines."""
        text = self.log.read_text(errors="replace")
        return text if last is None else "\n".join(text.splitlines()[-last:])


def remove_at_death(directory: Path) -> None:
    """Have the directory removed should this process be killed before it says `keep(directory)`."""
    _guardian.tell("remove", str(directory))


def keep(directory: Path) -> None:
    """Take back `remove_at_death`."""
    _guardian.tell("keep", str(directory))


class _Guardian:
    """Our end of the pipe to the guardian process, which is this very file run as a script; started on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._inherited: list[subprocess.Popen[bytes] | None] = []
        atexit.register(self.close)

    def tell(self, *message: str | int) -> None:
        with self._lock:
            if self._owner != os.getpid():
                self._inherited.append(self._process)  # our parent's: left alone, not even garbage collected
                # isolated, without site-packages: up in 20 ms
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", __file__, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    bufsize=0,
                    start_new_session=True,
                )
                self._owner = os.getpid()
            assert self._process is not None
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # somebody ended the guardian: `stop()` and atexit still stand
                self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait(30.0)
                self._process, self._owner = None, 0


_guardian = _Guardian()


def abandon(children: Mapping[int, int], directories: Iterable[str], *, grace: float = 8.0) -> None:
    """What the guardian does when its owner is gone: signal each child, SIGKILL after `grace` seconds, remove."""
    trees = {pid: [pid, *descendants(pid)] for pid in children if not gone(pid)}
    for pid, tree in trees.items():
        _signal([pid], children[pid])
        _signal(reversed(tree), signal.SIGCONT)
    everyone = [pid for tree in trees.values() for pid in tree]
    try:
        wait_until(lambda: all(map(gone, everyone)), timeout=grace, what="orphans")
    except TimeoutError:
        _signal([pid for pid in everyone if not gone(pid)], signal.SIGKILL)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _guard(owner: int) -> None:
    """The guardian: note what stdin tells, until the owner is gone or closes the pipe, then `abandon` the rest."""
    children: dict[int, int] = {}
    directories: dict[str, None] = {}
    poll = select.poll()
    poll.register(0, select.POLLIN)
    pending = b""
    while True:
        # End of file comes late when the owner forked: the forked process holds the pipe open as well. Hence the look
        # at our parent each second; it changes when the whole process is gone, not when a thread is (prctl(2)).
        if not poll.poll(1000):
            if os.getppid() != owner:
                break
            continue
        data = os.read(0, 65536)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            match json.loads(line):
                case ["guard", int(pid), int(number)]:
                    children[pid] = number
                case ["forget", int(pid)]:
                    children.pop(pid, None)
                case ["remove", str(directory)]:
                    directories[directory] = None
                case ["keep", str(directory)]:
                    directories.pop(directory, None)
    abandon(children, directories)


if __name__ == "__main__":
    _guard(int(sys.argv[1]))
