"""How the guard's cost grows: with the pool, the engines, the threads, the statements of a request, tokens and keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Any

from checkouts import checkout
from inprocess import checkouts, guarded, serve, statements
from measuring import Effort, Report, Samples, measure
from sqlalchemy import Engine, create_engine, text

from wsgi_dbguard import guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.routing.tokens import Token, Tokens

__all__ = ["run"]

DRIVER = "psycopg2"


def run(effort: Effort, report: Report) -> None:
    with PostgreSQL(settings={"max_connections": "400"}) as server:
        url = server.url(DRIVER)
        for size in effort.growth:
            _pool(effort, report, url, size)
        for number in effort.growth:
            _engines(effort, report, url, number)
        for number in (1, 4, 16):
            _threads(effort, report, url, number)
    for number in effort.growth:
        _statements(effort, report, number)
    for number in (0, *effort.growth):
        _tokens(effort, report, number)


def _pair(url: str, **options: Any) -> dict[str, Engine]:
    engines = {name: create_engine(url, **options) for name in ("nothing", "guard")}
    guard(engines["guard"])
    return engines


def _pool(effort: Effort, report: Report, url: str, size: int) -> None:
    """All connections of the pool are open, one is used at a time."""
    engines = _pair(url, pool_size=size)
    for engine in engines.values():
        with ExitStack() as stack:
            for _ in range(size):
                stack.enter_context(engine.connect())
    found = measure({name: checkout(engine) for name, engine in engines.items()}, effort)
    report.row("checkout, connections in the pool", f"{size}", found["CPU"], clock="CPU")
    for engine in engines.values():
        engine.dispose()


def _engines(effort: Effort, report: Report, url: str, number: int) -> None:
    """Each request uses one of the engines, and each of them has its turn."""
    pairs = [_pair(url) for _ in range(number)]
    apps = {
        "nothing": [serve(checkouts(pair["nothing"], 1)) for pair in pairs],
        "guard": [serve(guarded(checkouts(pair["guard"], 1), pair["guard"])) for pair in pairs],
    }
    found = measure({name: _in_turn(each) for name, each in apps.items()}, effort)
    report.row("request, engines", f"{number}", found["CPU"], clock="CPU")
    for pair in pairs:
        for engine in pair.values():
            engine.dispose()


def _in_turn(calls: list[Callable[[], None]]) -> Callable[[], None]:
    numbers = count()

    def call() -> None:
        calls[next(numbers) % len(calls)]()

    return call


def _threads(effort: Effort, report: Report, url: str, number: int) -> None:
    """So many threads check out at once, each as fast as it can: the time of all of them together."""
    engines = _pair(url, pool_size=number)
    samples: Samples = {name: [] for name in engines}
    each = max(1, round(effort.seconds / 2e-5 / number))
    for _ in range(effort.rounds):
        for name, engine in engines.items():
            samples[name].append(_together(checkout(engine), number, each))
    report.row("checkout, threads at once", f"{number}", samples, clock="wall")
    for engine in engines.values():
        engine.dispose()


def _together(call: Callable[[], None], number: int, each: int) -> float:
    """Microseconds per call."""
    barrier = threading.Barrier(number + 1)

    def work() -> None:
        barrier.wait()
        for _ in range(each):
            call()

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    barrier.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - begun) / number / each * 1e6


def _statements(effort: Effort, report: Report, number: int) -> None:
    """In SQLite's memory: the few µs that are looked for are lost in the noise of two processes.

    The look at the socket, of which SQLite has none, is measured by the checkout. With a Session `nothing` has the
    guard's listeners too, since they are of the class Session: what they cost without a request is in both.
    """
    for what, make in (("connection", _on_connection), ("Session", statements)):
        plain, ours = create_engine("sqlite://"), create_engine("sqlite://")
        apps = {"nothing": make(plain, number), "guard": guarded(make(ours, number), ours)}
        found = measure({name: serve(app) for name, app in apps.items()}, effort)
        report.row(f"request, statements of its {what}", f"{number}", found["CPU"], clock="CPU")
        plain.dispose()
        ours.dispose()


def _on_connection(engine: Engine, number: int) -> Any:
    statement = text("select 1")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        with engine.connect() as connection:
            for _ in range(number):
                connection.execute(statement)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    return app


def _tokens(effort: Effort, report: Report, number: int) -> None:
    """What routing does with the tokens that a request brings: signatures are checked, the newest position wins."""
    tokens = Tokens("a secret", name="db-position", lifetime=3600.0)
    text = tokens.dump(Token(None, time.time()))
    assert text is not None
    texts = [text] * number
    found = measure({"guard": lambda: tokens.load(texts)}, effort)
    report.row("routing, tokens of a request", f"{number}", found["CPU"], clock="CPU")
