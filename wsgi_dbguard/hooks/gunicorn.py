"""gunicorn: star-import this in gunicorn.conf.py. ::

    from wsgi_dbguard.hooks.gunicorn import *

With hooks of your own, put both behind one name; gunicorn has one callable for each hook::

    from wsgi_dbguard.hooks import gunicorn as dbguard
    post_fork = dbguard.compose(my_post_fork, dbguard.post_fork)

Importing it is the larger half of the work: gunicorn reads its configuration before the application, so whatever a
preloaded application opens at import is known, and `os.register_at_fork` cuts it off in each worker, whichever way that
was forked (new workers, USR2, "dirty" workers). `post_fork` does the same once more, for a Python that is not told of
the fork.

When gunicorn aborts a worker that gave no sign of life for `timeout` seconds, `worker_abort` stops on the server what
the worker's connections are doing; without it a query goes on there after its client is gone. `post_worker_init` sees
to it that this happens as well while the worker waits in psycopg2 or mysqlclient, where Python's signal handlers do not
run, and tells the health endpoints that the worker serves and, on SIGTERM, that it is about to end.

Threads and greenlets that wait for a query never make gunicorn abort their worker: the setting `deadline` of
`DBGuard` is for those.

`child_exit` removes from ``PROMETHEUS_MULTIPROC_DIR`` the gauges of a worker that has ended, if that is set (see
`wsgi_dbguard.metrics.prometheus`).

Only hooks are exported: gunicorn takes every top-level name of the configuration that is a setting's name as that
setting.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

from wsgi_dbguard import aborts, canceller
from wsgi_dbguard import worker as workers
from wsgi_dbguard.fork import after_fork

__all__ = ["child_exit", "compose", "post_fork", "post_worker_init", "worker_abort"]

logger = logging.getLogger(__name__)


def post_fork(server: Any, worker: Any) -> None:
    """In each worker, before the application is loaded there. Never raises: that would shut the master down."""
    after_fork()


def post_worker_init(worker: Any) -> None:
    """In each worker, when the application is loaded: from here on SIGABRT is seen in the middle of a query, and
    SIGTERM by the health endpoints."""
    try:
        aborts.listen()
    except Exception:
        logger.exception("SIGABRT will not be seen in the middle of a query")
    workers.serving()


def worker_abort(worker: Any) -> None:
    """In a worker that gunicorn aborts: stop its queries on the server, in half a second at most. Never raises."""
    canceller.abort()


def child_exit(server: Any, worker: Any) -> None:
    """In the master, when a worker has ended: without prometheus-client's multiprocess mode, nothing. Never raises."""
    try:
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            from wsgi_dbguard.metrics import slots

            slots.mark_process_dead(worker.pid)
    except Exception:
        logger.exception("the gauges of worker %s are still there", getattr(worker, "pid", "?"))


def compose(*hooks: Callable[..., Any]) -> Callable[..., Any]:
    """One hook that calls all of `hooks` in this order, with the arguments that gunicorn passes.

    If one raises the later ones are called all the same, then the first error is raised: gunicorn is to see it, but it
    must not cost the workers their protection.

    Raises:
        TypeError: if there is none, one is not callable, or they take different numbers of arguments.
    """
    for hook in hooks:
        if not callable(hook):
            raise TypeError(f"compose() takes functions, not {hook!r}")
    if len({_arity(hook) for hook in hooks}) != 1:
        raise TypeError("compose() takes one or more functions with the same number of arguments")

    def run(*args: Any) -> None:
        errors = []
        for hook in hooks:
            try:
                hook(*args)
            except Exception as error:
                errors.append(error)
        if errors:
            first, *others = errors
            for other in others:
                first.add_note(f"A later hook failed as well: {other!r}")
            raise first

    # gunicorn counts a hook's parameters and refuses *args: it must see the signature of what runs.
    run.__signature__ = inspect.signature(hooks[0])  # type: ignore[attr-defined]
    return run


def _arity(hook: Callable[..., Any]) -> int:
    """The number of arguments, counted as gunicorn counts them."""
    try:
        parameters = inspect.signature(hook).parameters.values()
    except ValueError:  # some functions written in C
        raise TypeError(f"compose() cannot tell the arguments of {hook!r}") from None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional for parameter in parameters)
