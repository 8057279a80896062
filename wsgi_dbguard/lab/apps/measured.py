"""The token echo of echo.py with the figures of its guard, for Prometheus to scrape.

``GET /metrics`` is the page, ``GET /pid`` answers with the process. With ``MEASURED_CONNECTIONS=1`` the import opens a
connection and gives it back, by way of the guard: where the server preloads, it is the master's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import echo

from wsgi_dbguard import DBGuard
from wsgi_dbguard.metrics import prometheus

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/metrics":
        return prometheus.application(environ, start_response)
    if environ["PATH_INFO"] == "/pid":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(os.getpid()).encode()]
    return echo.application(environ, start_response)


prometheus.install()
guarded = DBGuard(application)
with ExitStack() as stack:
    for _ in range(int(os.environ.get("MEASURED_CONNECTIONS", "0"))):
        stack.enter_context(echo.engine.connect())
