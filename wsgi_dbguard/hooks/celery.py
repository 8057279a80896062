"""Celery's prefork pool: import this in the module that makes the Celery application. ::

    import wsgi_dbguard.hooks.celery

Celery's workers are forked by billiard, which lets Python see the fork, so that connections the parent opened are cut
off by the package alone; this makes it certain for pools that fork in another way, through Celery's own
``worker_process_init`` signal.
"""

from __future__ import annotations

from typing import Any

from celery.signals import worker_process_init

from wsgi_dbguard.fork import after_fork

__all__: list[str] = []


# Not weakly: the signal would forget a function that nobody else refers to.
@worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
def _worker_process_init(**kwargs: Any) -> None:
    after_fork()
