"""What a request costs where the processor's caches hold something else by now, as on a busy server.

A loop that does nothing but requests keeps all of their code in the cache nearest to the processor. Under load it is
read from memory again for each request: other processes, the database's among them, have been there in between. So
before each call as much memory is written as drives everything out, and one call is a sample. It is some seven times as
dear as in a loop, the guard as well as what it is added to, and hangs on how many functions, classes and other objects
a request meets rather than on how much they do.

The floor is a middleware that opens a scope in a context variable and closes it with the response, and a listener that
polls.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from checkouts import POLL, checkout, floor
from inprocess import bare, guarded, iterated, on_connection, serve
from measuring import Effort, Report, Samples
from pools import make_engine
from sqlalchemy import create_engine

from wsgi_dbguard import guard
from wsgi_dbguard.lab.postgres import PostgreSQL

__all__ = ["run"]

DRIVER = "psycopg2"
FLOOR = "floor: scope"
SAMPLES = 20  # a round
CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")  # the last one that a core has for itself

_scope: ContextVar[object] = ContextVar("scope")


class _Scope:
    """A response of the floor's middleware."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._iterator = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = _scope.set(self)
        try:
            return next(self._iterator)
        finally:
            _scope.reset(token)

    def close(self) -> None:
        token = _scope.set(self)
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            _scope.reset(token)


def _floor(app: Any) -> Any:
    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        token = _scope.set(environ)
        try:
            body = app(environ, start_response)
        finally:
            _scope.reset(token)
        return body if type(body) is list else _Scope(body)

    return middleware


def run(effort: Effort, report: Report) -> None:
    none = create_engine("sqlite://")
    for what, app in (("a list", bare), ("an iterator", iterated)):
        calls = {"nothing": app, FLOOR: _floor(app), "guard": guarded(app, none)}
        samples = _measure({name: serve(each) for name, each in calls.items()}, effort)
        report.row("request without database, cold", what, samples, clock="CPU")
    with PostgreSQL() as server:
        engines = {name: make_engine(name, server.url(DRIVER)) for name in ("nothing", "guard")}
        engines[FLOOR] = engines[POLL] = floor(make_engine("nothing", server.url(DRIVER)), poll=True)
        guard(engines["guard"])
        checkouts = {name: checkout(engines[name]) for name in ("nothing", POLL, "guard")}
        report.row("checkout + checkin, cold", DRIVER, _measure(checkouts, effort), clock="CPU")
        apps = {name: on_connection(engines[name], 1) for name in ("nothing", FLOOR, "guard")}
        apps[FLOOR] = _floor(apps[FLOOR])
        apps["guard"] = guarded(apps["guard"], engines["guard"])
        requests = {name: serve(app) for name, app in apps.items()}
        report.row("request with one query, cold", DRIVER, _measure(requests, effort), clock="CPU")
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
