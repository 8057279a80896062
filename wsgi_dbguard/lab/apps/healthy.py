"""The applications of trials.py with health endpoints under ``/-/db``.

``HEALTHY_POOL=1`` gives the pool that many connections and no more; ``HEALTHY_TOKEN`` is the status page's token.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import echo
from sqlalchemy import create_engine

if size := os.environ.get("HEALTHY_POOL"):
    echo.engine = create_engine(echo.engine.url, pool_size=int(size), max_overflow=0)

import trials

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def guarded() -> WSGIApplication:
    from wsgi_dbguard import DBGuard

    return DBGuard(trials.unguarded(), health="/-/db", health_token=os.environ.get("HEALTHY_TOKEN"))
