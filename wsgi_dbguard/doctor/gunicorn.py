"""gunicorn's configuration, read by gunicorn: the file, ``GUNICORN_CMD_ARGS``, ``wsgi_app``, and its defaults.

The file is a program, and is run as gunicorn runs it, in the process that imports the application afterwards. No hook
in it is called, and no socket is opened.

Example::

    server, load = read("gunicorn.conf.py", target="")
    application = load()
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from .afterfork import cuts
from .facts import ServerFacts
from .loading import TargetError, load

__all__ = ["HOOKS", "read"]

HOOKS = "wsgi_dbguard.hooks.gunicorn"
_GREENLETS = ("gevent", "geventlet", "eventlet", "gevent_wsgi", "gevent_pywsgi")


def read(file: str, target: str) -> tuple[ServerFacts, Callable[[], Any]]:
    """The facts, and what loads the application: `target`, else the configuration's.

    Changes the working directory, `sys.path`, `sys.argv` and the environment as gunicorn does.

    Raises:
        TargetError: gunicorn is not installed, or nobody says which application.
        SystemExit: gunicorn refuses the configuration, and has said on stderr why.
    """
    try:
        from gunicorn.app.wsgiapp import WSGIApplication
    except ImportError:
        raise TargetError("gunicorn is not installed here: run doctor in the application's own environment") from None
    sys.argv = ["gunicorn", "--config", file, *([target] if target else [])]
    application = WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]")
    config: Any = application.cfg
    _enter(config)
    post_fork = config.settings["post_fork"]
    own = post_fork.get() if post_fork.get() is not post_fork.default else None
    paste = config.paste is not None
    worker = config.worker_class_str
    name = worker.rpartition(".")[2].lower()
    greenlets = any(each in name for each in _GREENLETS)
    facts = ServerFacts(
        name="gunicorn",
        file=file,
        version=version("gunicorn"),
        target=str(application.app_uri),
        processes=config.workers,
        threads=config.worker_connections if greenlets else config.threads,
        worker=worker,
        preloads=config.preload_app,
        hooks=HOOKS in sys.modules,
        post_fork="" if own is None else "cut" if cuts(own) else "hook",
        # Threads and greenlets that wait for a query do not stop their worker's sign of life.
        timeout=float(config.timeout) or None if name in ("sync", "syncworker") else None,
        timeout_name="timeout",
    )
    return facts, application.load if paste else lambda: load(facts.target)


def _enter(config: Any) -> None:
    """What gunicorn does after reading, before it loads the application."""
    os.environ.update(config.env)
    for path in (config.pythonpath or "").split(","):
        if path and os.path.abspath(path) not in sys.path:
            sys.path.insert(0, os.path.abspath(path))
