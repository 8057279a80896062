"""The token echo of echo.py with the figures of its guard by OpenTelemetry, in the memory of each process.

``GET /figures`` takes a connection, gives it back, and answers with the figures of the process that is asked, as JSON;
each process writes its own to ``FIGURES/<pid>`` when it ends. The provider is made in the worker, as OpenTelemetry
wants it; where the server preloads, the guard's instruments are older.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import echo
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from wsgi_dbguard import DBGuard
from wsgi_dbguard.metrics import opentelemetry

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

readers: dict[int, InMemoryMetricReader] = {}  # by pid
lock = threading.Lock()


def ensure() -> None:
    with lock:
        if os.getpid() not in readers:
            reader = readers[os.getpid()] = InMemoryMetricReader()
            set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))


def figures() -> dict[str, float]:
    """Sums and counts by name, and by name and state."""
    found: Counter[str] = Counter({"pid": os.getpid()})
    data = readers[os.getpid()].get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics if data is not None else ():
        for point in metric.data.data_points:
            state = (point.attributes or {}).get("db.client.connection.state", "")
            value = point.count if hasattr(point, "count") else point.value
            for name in {str(metric.name), f"{metric.name} {state}".rstrip()}:
                found[name] += value  # type: ignore[assignment]
    return dict(found)


@atexit.register
def tell() -> None:
    if os.getpid() in readers:
        Path(os.environ["FIGURES"], str(os.getpid())).write_text(json.dumps(figures()))


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/healthz":
        return echo.application(environ, start_response)
    ensure()
    if environ["PATH_INFO"] == "/figures":
        echo.engine.raw_connection().close()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(figures()).encode()]
    return echo.application(environ, start_response)


opentelemetry.install()
guarded = DBGuard(application)
