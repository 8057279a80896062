"""uWSGI's configuration, from its ini file: what `ini` reads, judged by uWSGI's own rules and defaults.

Example::

    server, load = read("uwsgi.ini", target="")
    application = load()
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from . import standin
from .facts import ServerFacts
from .ini import IniError, Options
from .ini import read as read_ini
from .loading import TargetError, load

__all__ = ["HOOKS", "read"]

HOOKS = "wsgi_dbguard.hooks.uwsgi"
_OFF = ("false", "no", "off", "0")


class _Options:
    """The options by any of their names. Where one stands several times, the last one counts."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def all(self, *names: str) -> list[str]:
        return [value for name, value in self._options if name in names]

    def everything(self) -> Options:
        return list(self._options)

    def last(self, *names: str) -> str | None:
        found = self.all(*names)
        return found[-1] if found else None

    def on(self, *names: str) -> bool | None:
        """Whether a switch is on; None where nothing is said."""
        value = self.last(*names)
        return None if value is None else value.lower() not in _OFF

    def number(self, default: int, *names: str) -> int:
        value = self.last(*names)
        if value is None:
            return default
        try:
            return int(value)
        except ValueError:
            raise IniError(f"{names[0]} = {value}: that is no number") from None


def read(file: str, target: str) -> tuple[ServerFacts, Callable[[], Any]]:
    """The facts, and what loads the application: `target`, else the configuration's.

    Changes the working directory, `sys.path`, `sys.argv` and the environment as uWSGI does, and puts a stand-in for
    the module `uwsgi` into `sys.modules`.

    Raises:
        IniError: the file is not there, or says something that is not understood.
        TargetError: nobody says which application.
    """
    options = _Options(read_ini(file, os.environ))
    greenlets = options.number(0, "gevent", "async", "asyncio")
    processes = options.number(1, "processes", "workers", "p")
    threads = options.number(1, "threads")
    forks = bool(options.on("master", "M")) or processes > 1
    lazy = any(options.on(each) for each in ("lazy-apps", "lazy"))
    harakiri = options.number(0, "harakiri", "t")
    facts = ServerFacts(
        name="uwsgi",
        file=file,
        version=_version(),
        target=target or _target(options),
        processes=processes,
        threads=max(greenlets, threads, 1),
        worker="gevent" if options.last("gevent") else "",
        preloads=forks and not lazy,
        hooks=HOOKS in options.all("shared-import", "shared-pyimport", "shared-py-import"),
        enable_threads=True if threads > 1 else options.on("enable-threads", "T"),  # threads = 2 switches it on as well
        timeout=float(harakiri) or None,
        timeout_name="harakiri",
    )
    if not facts.target and options.all("ini-paste", "ini-paste-logged", "paste"):
        raise TargetError(f"{file}: Paste configurations are not read here; give TARGET")
    if not facts.target:
        raise TargetError(f"{file} names no module: write module = wsgi:application there, or give TARGET")
    _enter(options)
    standin.install({name: value.encode() for name, value in options.everything()})
    return facts, lambda: load(facts.target)


def _target(options: _Options) -> str:
    name = options.last("callable") or ""
    for mount in options.all("mount"):
        options = _Options([("module", mount.partition("=")[2])])
    module = options.last("module", "wsgi", "w") or ""
    if not module and (file := options.last("wsgi-file", "file")):
        module = file if file.endswith(".py") or os.sep in file else os.path.join(".", file)
    return module if ":" in module or not name else f"{module}:{name}"


def _enter(options: _Options) -> None:
    """What uWSGI does before it loads the application."""
    for assignment in options.all("env"):
        name, _, value = assignment.partition("=")
        os.environ[name] = value
    for directory in options.all("chdir"):
        try:
            os.chdir(directory)
        except OSError as error:
            raise IniError(f"chdir = {directory}: {error.strerror}") from None
    for path in options.all("pythonpath", "python-path", "pp"):
        sys.path.insert(0, os.path.abspath(path))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.argv = ["uwsgi"]


def _version() -> str:
    """That of the program, "" where there is none."""
    beside = os.path.join(os.path.dirname(sys.executable), "uwsgi")
    program = beside if os.access(beside, os.X_OK) else shutil.which("uwsgi")
    if program is None:
        return ""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\d+(?:\.\d+)+", told)
    return found[0] if found else ""
