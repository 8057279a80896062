"""uWSGI: import this in the master, before it forks. ::

    shared-import = wsgi_dbguard.hooks.uwsgi

It sets ``uwsgi.post_fork_hook``, which uWSGI calls in every process that it forks: workers (respawned and cheaper ones
as well), mules and spoolers. A hook that stands there already, and those of ``uwsgidecorators.postfork``, are called
after ours. With lazy-apps it is a second net, since the application is loaded after the fork. Without a master the hook
also runs in the one process that never forked, where it does nothing.

By ``shared-import`` and not by the application: with lazy-apps a hook that the application registers never fires, and
``import`` comes too late for the first workers. uWSGI does not let Python see its forks (`os.register_at_fork` handlers
do not run), and its switches for that kill workers on Python 3.13 or crash mules: neither is set by anything here.

harakiri is SIGKILL: nothing in the worker can stop its query then, which goes on in the server. Let the setting
``deadline`` of `DBGuard` be shorter than harakiri; and PostgreSQL's ``client_connection_check_interval`` has the server
itself look now and then whether the client is still there. MySQL and MariaDB have nothing like it.

With prometheus-client's multiprocess mode (``PROMETHEUS_MULTIPROC_DIR`` is set) it sets ``uwsgi.atexit`` as well: a
worker that ends in order removes its gauges, see `wsgi_dbguard.metrics.prometheus`, and a new one those of workers that
were killed. What stands there already is called after it.

If the application later puts a hook of its own in ``uwsgi.post_fork_hook`` directly, it replaces this one: let it call
`wsgi_dbguard.after_fork` first. The guard would notice the fork at the next request all the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import uwsgi

from wsgi_dbguard import worker
from wsgi_dbguard.fork import after_fork

__all__: list[str] = []

_logger = logging.getLogger(__name__)


def _hooks_that_stand() -> list[Callable[[], object]]:
    """What would have run without us: a hook set directly, and uwsgidecorators'."""
    hooks = [hook] if (hook := getattr(uwsgi, "post_fork_hook", None)) is not None else []
    # Its import puts hooks in place, over whatever stands there. Imported here and put right, it cannot do that to ours
    # when the application imports it later. It refuses to be imported without a master.
    others = {name: getattr(uwsgi, name) for name in ("spooler", "mule_msg_hook") if hasattr(uwsgi, name)}
    try:
        from uwsgidecorators import postfork_chain_hook
    except Exception:
        return hooks
    for name, function in others.items():
        setattr(uwsgi, name, function)
    if postfork_chain_hook not in hooks:
        hooks.append(postfork_chain_hook)
    return hooks


_hooks = _hooks_that_stand()


def _post_fork() -> None:
    after_fork()
    _forget_gauges(mine=False)
    _serving()
    for hook in _hooks:
        try:
            hook()
        except Exception:
            # uWSGI would print it and go on, and so do we: the next hook must not be skipped for it.
            _logger.exception("post_fork hook %r failed", hook)


def _serving() -> None:
    """Tell the health endpoints that this process is a worker; a mule or a spooler is none."""
    try:
        if uwsgi.worker_id():
            worker.serving()
    except Exception:
        _logger.exception("the status page does not know of this worker until its first request")


def _forget_gauges(*, mine: bool) -> None:
    """Remove those of processes that are dead; and, as the last thing that it does, of this one."""
    try:
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            from wsgi_dbguard.metrics import slots

            slots.mark_process_dead(os.getpid() if mine else None)
    except Exception:
        _logger.exception("gauges of processes that are gone are still there")


_last: Callable[[], object] | None = None


def _at_exit() -> None:
    _forget_gauges(mine=True)
    if _last is not None:
        _last()


uwsgi.post_fork_hook = _post_fork

if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    _last = getattr(uwsgi, "atexit", None)
    uwsgi.atexit = _at_exit
