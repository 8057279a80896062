"""How the guard's cost grows: with the pool, the engines, the threads, the statements of a request, tokens and keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from checkouts import checkout
from inprocess import checkouts, guarded, in_session, on_connection, serve
from measuring import Effort, Elsewhere, Report, Samples, measure
from pools import make_engine
from sqlalchemy import Engine, create_engine

from wsgi_dbguard import guard
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.routing.tokens import Token, Tokens

__all__ = ["run"]

DRIVER = "psycopg2"
UNGUARDED = Path(__file__).with_name("unguarded.py")


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


def _pair(url: str, size: int = 5) -> dict[str, Engine]:
    engines = {name: make_engine(name, url, size=size) for name in ("nothing", "guard")}
    guard(engines["guard"])
    return engines


def _pool(effort: Effort, report: Report, url: str, size: int) -> None:
    """All connections of the pool are open, one is used at a time."""
    engines = _pair(url, size)
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
    for calls in apps.values():
        for call in calls:
            call()  # connects
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
    engines = _pair(url, number)
    samples: Samples = {name: [] for name in engines}
    each = max(1, round(effort.seconds / 5e-6 / number))
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

    The look at the socket, of which SQLite has none, is measured by the checkout.
    """
    for what, make in (("connection", on_connection), ("Session", in_session)):
        ours = create_engine("sqlite://")
        # Elsewhere: the guard's listeners to Session are on the class, so here `nothing` would pay for them too.
        with Elsewhere(UNGUARDED, make.__name__, str(number)) as nothing:
            found = measure({"nothing": nothing, "guard": serve(guarded(make(ours, number), ours))}, effort)
        report.row(f"request, statements of its {what}", f"{number}", found["CPU"], clock="CPU")
        ours.dispose()


def _tokens(effort: Effort, report: Report, number: int) -> None:
    """What routing does with the tokens that a request brings: signatures are checked, the newest position wins."""
    tokens = Tokens("a secret", name="db-position", lifetime=3600.0)
    text = tokens.dump(Token(None, time.time()))
    assert text is not None
    texts = [text] * number
    found = measure({"guard": lambda: tokens.load(texts)}, effort)
    report.row("routing, tokens of a request", f"{number}", found["CPU"], clock="CPU")
