"""A checkout + checkin, and a request with one query and with five checkouts, by driver and network delay; with MariaDB
one that commits, since it is that which `skip_idle_rollback` spares a round trip.

The floor stands in the same rows: what SQLAlchemy's event costs when its listener does nothing, and when it does what
no check of a socket can do without, one `poll`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from inprocess import bare, checkouts, guarded, serve, streaming, wrapped, writing
from measuring import Effort, Report, Row, Samples, measure
from pools import CONTENDERS, FLOOR, make_engine
from sqlalchemy import Engine, create_engine, event

from wsgi_dbguard import GuardConfig, guard, leaks
from wsgi_dbguard.lab.drivers import driver_named
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.request import Request, current

__all__ = ["checkout", "place", "run"]

POSTGRESQL = ("psycopg2", "psycopg")
MYSQL = ("pymysql", "mysqlclient")
EMPTY, POLL = "floor: listener", "floor: + poll"
SKIP = "guard, skip_idle_rollback"
CHEAPER = {"psycopg2": 20, "psycopg": 40}  # than pre_ping, on loopback
FAR = 0.001  # seconds one way, of which the goals speak
LEAST = 0.1  # µs: what cannot be told from nothing


def run(effort: Effort, report: Report) -> None:
    for kind, names in ((PostgreSQL, POSTGRESQL), (MariaDB, MYSQL)):
        drivers = []
        for name in names:
            if reason := driver_named(name).missing():
                report.skip(name, reason)
            else:
                drivers.append(name)
        try:
            server = kind()
        except ServerMissing as missing:
            report.skip(kind.name, missing)
            continue
        with server, FaultProxy(server.host, server.port) as proxy:
            for delay in effort.delays:
                proxy.delay(delay)
                address = (proxy.host, proxy.port) if delay else (server.host, server.port)
                for driver in drivers:
                    url = server.url_through(*address, driver)
                    _checkouts(effort, report, driver, url, delay)
                    if not delay:
                        _in_requests(effort, report, driver, url)
                    _requests(effort, report, driver, url, delay)
    _without(effort, report)


def place(driver: str, delay: float) -> str:
    return f"{driver}, {delay * 1000:g} ms" if delay else f"{driver}, loopback"


def checkout(engine: Engine) -> Callable[[], None]:
    connect = engine.raw_connection

    def cycle() -> None:
        connect().close()

    return cycle


@contextmanager
def _engines(report: Report, url: str, contenders: tuple[str, ...]) -> Iterator[dict[str, Engine]]:
    engines = {}
    with ExitStack() as stack:
        for name in contenders:
            try:
                engines[name] = make_engine(name, url)
            except ValueError as error:  # not with this driver
                if "psycopg_pool" not in str(error):
                    raise
                continue
            except ImportError as error:
                report.skip(name, error)
                continue
            stack.callback(engines[name].dispose)
        yield engines


def _listening(engine: Engine) -> Engine:
    event.listen(engine, "checkout", lambda connection, entry, proxy: None)
    return engine


def _checkouts(effort: Effort, report: Report, driver: str, url: str, delay: float) -> None:
    names = tuple(name for name in CONTENDERS if name != "ping per request")  # a ping per request needs a request
    with _engines(report, url, names) as engines:
        guard(engines["guard"])
        engines |= {EMPTY: _listening(make_engine("nothing", url))}
        engines |= {POLL: make_engine(FLOOR, url)}
        if driver in MYSQL:
            engines[SKIP] = _skipping(url)
        found = measure({name: checkout(engine) for name, engine in engines.items()}, effort)
        for name in (EMPTY, POLL, SKIP):
            if name in engines:
                engines[name].dispose()
    row = report.row("checkout + checkin", place(driver, delay), found["wall"], clock="wall")
    if not delay:
        report.row("checkout + checkin", place(driver, delay), found["CPU"], clock="CPU")
    _goals(report, driver, delay, row, found["CPU"])


def _within_request(engine: Engine, config: GuardConfig) -> Callable[[], None]:
    """A checkout as a request makes it, under a `DBGuard` with `config`; what the request itself costs is not in it."""
    cycle = checkout(engine)
    request = Request({"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
    leaks.observe(request, config)

    def run() -> None:
        token = current.set(request)
        cycle()
        current.reset(token)

    return run


def _in_requests(effort: Effort, report: Report, driver: str, url: str) -> None:
    plain, ours = make_engine("nothing", url), make_engine("guard", url)
    guard(ours)
    contenders = {
        "nothing": _within_request(plain, GuardConfig(leaks="off")),
        "guard": _within_request(ours, GuardConfig()),
        "leaks=off": _within_request(ours, GuardConfig(leaks="off")),
        "leak_stacks": _within_request(ours, GuardConfig(leak_stacks=True)),
    }
    found = measure(contenders, effort)
    report.row("the same within a request", place(driver, 0.0), found["CPU"], clock="CPU")
    plain.dispose()
    ours.dispose()


def _goals(report: Report, driver: str, delay: float, row: Row, samples: Samples) -> None:
    """What pre_ping adds is waiting; what the guard adds is a few µs of CPU, which in a round trip's noise are lost."""
    where, cpu = row.where, Row(row.what, row.where, row.unit, samples)
    if not delay:
        report.goal(f"checkout, {where}: guard / nothing, CPU", cpu.ratio("guard"), most=1.25, floor=cpu.ratio(POLL))
    cheaper, floor = (row.adds("pool_pre_ping") / max(cpu.adds(name), LEAST) for name in ("guard", POLL))
    least = CHEAPER.get(driver) if not delay else 500 if delay == FAR else None
    if least:
        report.goal(f"checkout, {where}: pool_pre_ping adds / guard adds (CPU)", cheaper, least=least, floor=floor)
    if SKIP in row.samples:
        report.goal(f"checkout, {where}: {SKIP} / nothing", row.ratio(SKIP), most=1.0)


def _requests(effort: Effort, report: Report, driver: str, url: str, delay: float) -> None:
    kinds: dict[str, Callable[[Engine], Any]] = {
        "request with one query": partial(checkouts, count=1),
        "request with five checkouts": partial(checkouts, count=5),
    }
    with _engines(report, url, CONTENDERS) as engines:
        if driver in MYSQL:
            engines[SKIP] = _skipping(url)
            kinds["request that commits"] = writing
        for what, make in kinds.items():
            apps = {name: wrapped(name, make(engine), engine) for name, engine in engines.items()}
            found = measure({name: serve(app) for name, app in apps.items()}, effort)
            report.row(what, place(driver, delay), found["wall"], clock="wall")
        if SKIP in engines:
            engines[SKIP].dispose()


def _skipping(url: str) -> Engine:
    engine = create_engine(url)
    guard(engine, skip_idle_rollback=True)
    return engine


def _without(effort: Effort, report: Report) -> None:
    """A request that does nothing with the database."""
    engine = create_engine("sqlite://")
    for what, app in (("a list", bare), ("a generator", streaming)):
        found = measure({"nothing": serve(app), "guard": serve(guarded(app, engine))}, effort)
        report.row("request without database", what, found["CPU"], clock="CPU")
