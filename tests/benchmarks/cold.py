"""What a request costs where the processor's caches hold something else by now, as on a busy server.

A loop that does nothing but requests keeps all of their code in the cache nearest to the processor. Under load it is
read from memory again for each request: other processes, the database's among them, have been there in between. So
before each call as much memory is written as drives everything out, and one call is a sample. It is some seven times as
dear as in a loop, the guard as well as what it is added to, and hangs on how many functions, classes and other objects
a request meets rather than on how much they do.

The floor is what pools.py has: a middleware that opens and closes a scope, and a listener that polls.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from pathlib import Path

from checkouts import checkout
from inprocess import bare, iterated, on_connection, serve, wrapped
from measuring import Effort, Report, Samples
from pools import FLOOR, make_engine
from sqlalchemy import create_engine

from wsgi_dbguard import guard
from wsgi_dbguard.lab.postgres import PostgreSQL

__all__ = ["run"]

DRIVER = "psycopg2"
NAMES = ("nothing", FLOOR, "guard")
SAMPLES = 20  # a round
CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")  # the last one that a core has for itself


def run(effort: Effort, report: Report) -> None:
    none = create_engine("sqlite://")
    for what, app in (("a list", bare), ("an iterator", iterated)):
        requests = {name: serve(wrapped(name, app, none)) for name in NAMES}
        report.row("request without database, cold", what, _measure(requests, effort), clock="CPU")
    with PostgreSQL() as server:
        engines = {name: make_engine(name, server.url(DRIVER)) for name in NAMES}
        guard(engines["guard"])
        found = _measure({name: checkout(engine) for name, engine in engines.items()}, effort)
        report.row("checkout + checkin, cold", DRIVER, found, clock="CPU")
        apps = {name: wrapped(name, on_connection(engine, 1), engine) for name, engine in engines.items()}
        found = _measure({name: serve(app) for name, app in apps.items()}, effort)
        report.row("request with one query, cold", DRIVER, found, clock="CPU")
        for engine in engines.values():
            engine.dispose()


def _measure(calls: dict[str, Callable[[], None]], effort: Effort) -> Samples:
    """Microseconds of single calls, by turns, each with cold caches."""
    source = bytearray(2 * _cache())
    target = memoryview(bytearray(len(source)))
    samples: Samples = {name: [] for name in calls}
    shuffle = random.Random(1).sample
    for call in calls.values():
        for _ in range(20):
            call()
    gc.collect()
    gc.disable()
    try:
        for _ in range(effort.rounds * SAMPLES):
            for name in shuffle(list(calls), len(calls)):
                target[:] = source
                time.thread_time_ns()
                begun = time.thread_time_ns()
                calls[name]()
                samples[name].append((time.thread_time_ns() - begun) / 1000)
    finally:
        gc.enable()
    return samples


def _cache() -> int:
    """Bytes."""
    try:
        return int(CACHE.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 4 << 20
