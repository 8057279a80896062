"""Real gunicorn and uWSGI on a private port, with the guard's hooks or without, for demo, tests and benchmarks.

Both take an application as ``module:name`` or ``module:factory()`` and the directories it is found in. The guarded and
the unguarded server are to differ in nothing but the guard: here that is the hook line of the configuration; the
application's own part (`DBGuard`) is in the name that is asked for.

Example::

    with gunicorn("echo:guarded()", guarded=True, directory=directory, path=[APPS], DATABASE_URL=url) as server:
        wait_for_http(server.url)
        print(server.child.output())
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from . import adopt
from .load import wait_for_http
from .process import Child, descendants, gone, wait_until

__all__ = ["APPS", "HOOKS", "Server", "gunicorn", "uwsgi"]

APPS = Path(__file__).with_name("apps")
"""Directory of the applications that only the lab serves."""

HOOKS = "from wsgi_dbguard.hooks.gunicorn import *\n"
"""The guard's line in a gunicorn.conf.py."""

UWSGI_HOOKS = "wsgi_dbguard.hooks.uwsgi"

# The control socket of 25.1 and later would be made in $HOME, by a thread of the master.
_CONFIG = f"{HOOKS}control_socket_disable = True\n"

# What the servers, Flask and the guard would read from the environment of whoever runs the demo or the tests.
_SETTINGS = ("PORT", "WEB_CONCURRENCY", "GUNICORN_", "UWSGI_", "WSGI_DBGUARD_", "DBGUARD_", "NOTIFY_SOCKET", "FLASK_")


class Server:
    """A WSGI server that was started, serving or soon to serve; leaving its `with` block stops it."""

    def __init__(self, child: Child, address: str) -> None:
        self.child = child
        self._address = address
        self._url = ""

    def __repr__(self) -> str:
        return f"<Server {self._url or 'starting'} {self.child!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def ready(self, path: str = "/healthz", *, timeout: float = 60.0) -> str:
        """Wait until it answers at `path`, which should do without the database, and return its URL: http://host:port.

        Raises RuntimeError with the end of its log when it ended instead, TimeoutError after `timeout` seconds.
        """
        if not self._url:
            self._url = "http://" + wait_until(self._bound, timeout=timeout, what=f"the address of {self.child!r}")
        wait_until(lambda: self._answers(path), timeout=timeout, what=f"an answer of {self!r}")
        return self._url

    @property
    def url(self) -> str:
        """The URL without a slash at its end, after `ready()`."""
        return self._url or self.ready()

    @property
    def processes(self) -> list[int]:
        """Process ids of all that live, the first one first."""
        return [self.child.pid, *descendants(self.child.pid)] if self.child.running else []

    def stop(self) -> None:
        """Ask it to end, and after 10 seconds kill it and its workers. Nothing happens when it has ended."""
        pids = self.processes
        self.child.stop()
        for pid in pids:
            if not gone(pid):  # uWSGI without a master: nobody tells the other workers
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(map(gone, pids)), timeout=60.0, what=f"the end of {pids}")

    def _bound(self) -> str:
        self._check()
        found = re.search(self._address, self.child.output())
        return found[1] if found else ""

    def _answers(self, path: str) -> bool:
        self._check()
        try:
            return wait_for_http(self._url + path, timeout=1.0) > 0
        except TimeoutError:
            return False

    def _check(self) -> None:
        if not self.child.running:
            raise RuntimeError(f"{self.child!r}:\n{self.child.output(last=20)}")


def gunicorn(
    app: str,
    *options: str,
    guarded: bool,
    directory: Path,
    path: Sequence[Path],
    config: Path | None = None,
    adopted: bool = False,
    **variables: str,
) -> Server:
    """Start gunicorn with the command line `options` and the environment `variables`; wait with `Server.ready`.

    config: a gunicorn.conf.py with the guard's line (`HOOKS`), of which a copy is used, without that line when the
    server is not to be guarded; None is one with little else. directory: for that copy and the log. adopted: the child
    is a parent of gunicorn's (lab/adopt.py), so that a master that takes over (SIGUSR2) is stopped as well.

    Raises ValueError for a `config` without the guard's line.
    """
    text = config.read_text() if config else _CONFIG
    if HOOKS not in text:
        raise ValueError(f"{config} has no line {HOOKS!r}")
    place = _place(directory, guarded)
    settings = place / "gunicorn.conf.py"
    settings.write_text(text if guarded else text.replace(HOOKS, ""))
    parent = [sys.executable, str(Path(adopt.__file__))] if adopted else []
    return _start(
        [*parent, sys.executable, "-m", "gunicorn", "--config", str(settings), "--bind", "127.0.0.1:0"],
        ["--pythonpath", ",".join(map(str, path)), *options, app],
        place,
        variables,
        address=r"Listening at: http://(\S+)",
    )


def uwsgi(app: str, *options: str, guarded: bool, directory: Path, path: Sequence[Path], **variables: str) -> Server:
    """Start uWSGI with the command line `options` and the environment `variables`; wait with `Server.ready`.

    directory: for the log. Raises FileNotFoundError when there is no uwsgi.
    """
    scripts = sysconfig.get_path("scripts")
    program = shutil.which("uwsgi", path=os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]))
    if program is None:
        raise FileNotFoundError("no uwsgi: pip install pyuwsgi")
    needed = ["--strict", "--need-app", "--die-on-term", "--enable-threads", "--single-interpreter"]
    return _start(
        [program, "--http-socket", "127.0.0.1:0", "--module", app, *needed],
        [
            *(f"--pythonpath={each}" for each in path),
            *([f"--shared-import={UWSGI_HOOKS}"] if guarded else []),
            *options,
        ],
        _place(directory, guarded),
        variables,
        address=r"bound to TCP address (127\.0\.0\.1:\d+) ",
    )


def _place(directory: Path, guarded: bool) -> Path:
    return Path(tempfile.mkdtemp(prefix="guarded-" if guarded else "unguarded-", dir=directory))


def _start(command: list[str], options: list[str], place: Path, variables: dict[str, str], *, address: str) -> Server:
    own = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    # The applications lie in installed packages, whose directories are not ours to write in.
    environment = {**own, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return Server(Child([*command, *options], log=place / "server.log", env=environment, cwd=place), address)
