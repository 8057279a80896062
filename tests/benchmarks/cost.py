"""What the guard costs: a checkout with nothing, with the guard and with pool_pre_ping, and a request through DBGuard.

All contenders run interleaved in one run; medians of many rounds, and ratios. Absolute times belong to the machine, the
ratios do not. Run it with::

    .ci/venv python tests/benchmarks/cost.py [--json] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker

from wsgi_dbguard import DBGuard, GuardConfig, guard, leaks, registry
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.request import Request, current

ONE_WAY = 0.001  # seconds that the proxy holds each byte, in each direction


class Bare:
    """Requests of `queries` in a process of its own: a `DBGuard` listens to all Sessions of its process, bare ones too.

    Called as any contender; `seconds` is how long so many calls take.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_bare, args=(count, theirs))
        self._process.start()

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipe.send(0)
        self._process.join()

    def __call__(self) -> None:
        self.seconds(1)

    def seconds(self, repeat: int) -> float:
        self._pipe.send(repeat)
        return float(self._pipe.recv())


def _serve_bare(count: int, pipe: Any) -> None:
    engine = create_engine("sqlite://")
    request = serve(queries(engine, count))
    while repeat := pipe.recv():
        pipe.send(elapsed(request, repeat))
    engine.dispose()


def elapsed(call: Callable[[], object], repeat: int) -> float:
    """The seconds that so many calls take."""
    if isinstance(call, Bare):
        return call.seconds(repeat)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return time.perf_counter() - start


def measure(contenders: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds per call for each contender, one sample a round, taken in turns."""
    repeat = {}
    for name, call in contenders.items():
        call()
        repeat[name] = max(1, round(seconds / max(elapsed(call, 1), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            samples[name].append(elapsed(call, repeat[name]) / repeat[name] * 1e6)
    return samples


def checkout(engine: Engine) -> Callable[[], None]:
    connect = engine.raw_connection

    def cycle() -> None:
        connect().close()

    return cycle


def within_request(engine: Engine, config: GuardConfig) -> Callable[[], None]:
    """A checkout as a request makes it, under a `DBGuard` with `config`."""
    cycle = checkout(engine)
    request = Request({"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
    leaks.observe(request, config)

    def run() -> None:
        token = current.set(request)
        cycle()
        current.reset(token)

    return run


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def streaming(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    yield b"ok"


def queries(engine: Engine, count: int) -> Any:
    """An application that sends `count` statements in a transaction of its Session."""
    statement = text("select 1")
    session = scoped_session(sessionmaker(engine))

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for _ in range(count):
            session.execute(statement)
        session.remove()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    return app


def guarded(engine: Engine, app: Any) -> DBGuard:
    """`app` in a DBGuard that watches `engine` and no other: those of the other contenders are in this process too."""
    with mock.patch.object(registry, "on_engine", lambda listener: listener(engine)):
        return DBGuard(app, engine)


def serve(app: Any) -> Callable[[], None]:
    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any: ...

    def request() -> None:
        body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.file_wrapper": list}, start_response)
        try:
            for _ in body:
                pass
        finally:
            if hasattr(body, "close"):
                body.close()

    return request


def run(rounds: int) -> dict[str, dict[str, float]]:
    """Per measurement: the median of each contender in µs, and what guard and pre_ping add to nothing."""
    results: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(PostgreSQL())
        proxy = stack.enter_context(FaultProxy(server.host, server.port))
        proxy.delay(ONE_WAY)
        for driver in ("psycopg2", "psycopg"):
            for place, url in (
                ("loopback", server.url(driver)),
                ("1 ms each way", server.url_through(proxy.host, proxy.port, driver)),
            ):
                engines = {
                    "nothing": create_engine(url),
                    "guard": create_engine(url),
                    "pre_ping": create_engine(url, pool_pre_ping=True),
                }
                guard(engines["guard"])
                samples = measure({name: checkout(engine) for name, engine in engines.items()}, rounds, 0.02)
                results[f"checkout + checkin, {driver}, {place}"] = summary(samples)
                if place == "loopback":
                    contenders: dict[str, Callable[[], object]] = {
                        "nothing": within_request(engines["nothing"], GuardConfig(leaks="off")),
                        "guard": within_request(engines["guard"], GuardConfig(leaks="off")),
                        "leaks=heal": within_request(engines["guard"], GuardConfig()),
                        "leak_stacks": within_request(engines["guard"], GuardConfig(leak_stacks=True)),
                    }
                    results[f"the same in a request, {driver}"] = summary(measure(contenders, rounds, 0.02))
                for engine in engines.values():
                    engine.dispose()
        results |= requests(rounds)
        bare = create_engine("sqlite://")
        for name, app in (("list", application), ("generator", streaming)):
            samples = measure({"nothing": serve(app), "guard": serve(DBGuard(app, bare))}, rounds, 0.02)
            results[f"request without database, {name}"] = summary(samples)
    return results


def requests(rounds: int) -> dict[str, dict[str, float]]:
    """A request with one statement and with eleven: the difference is what ten statements cost.

    In SQLite's memory: the few µs that are looked for are lost in the noise of two servers. The look at the socket, of
    which SQLite has none, is measured by the checkout.
    """
    ours = create_engine("sqlite://")
    with ExitStack() as stack:
        contenders: dict[str, Callable[[], object]] = {}
        for count in (1, 11):
            contenders[f"nothing {count}"] = stack.enter_context(Bare(count))
            contenders[f"guard {count}"] = serve(guarded(ours, queries(ours, count)))
        samples = measure(contenders, rounds, 0.05)
    ours.dispose()
    one, eleven = ({name: samples[f"{name} {count}"] for name in ("nothing", "guard")} for count in (1, 11))
    each = {name: [(more - less) / 10 for more, less in zip(eleven[name], one[name], strict=True)] for name in one}
    place = "Session"
    return {f"request with one statement, {place}": summary(one), f"each further statement, {place}": summary(each)}


def summary(samples: dict[str, list[float]]) -> dict[str, float]:
    medians = {name: statistics.median(values) for name, values in samples.items()}
    adds = {
        f"{name} adds": statistics.median(
            value - base for value, base in zip(samples[name], samples["nothing"], strict=True)
        )
        for name in samples
        if name != "nothing"
    }
    ratio = {"pre_ping adds / guard adds": adds["pre_ping adds"] / adds["guard adds"]} if "pre_ping" in samples else {}
    return medians | adds | ratio | {"guard / nothing": medians["guard"] / medians["nothing"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=51, help="samples for each contender (default 51)")
    args = parser.parse_args()
    results = run(args.rounds)
    if args.json:
        print(json.dumps(results, indent=2))
        return
    columns = list(dict.fromkeys(column for row in results.values() for column in row))
    table = Table("µs, medians", *columns, title="What the guard costs")
    for name, row in results.items():
        table.add_row(name, *(f"{row[column]:.2f}" if column in row else "" for column in columns))
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
