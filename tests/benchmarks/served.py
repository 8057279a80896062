"""Throughput and latency of a page with one query, under real servers: every contender, loaded in turns by wrk.

Two workers with four threads each (gevent: two workers; sync: four), eight clients with kept connections. Server,
database and load share this machine: the ratios say what a contender costs, the figures themselves say little. psycopg,
because every contender and gevent work with it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from checkouts import place
from measuring import Effort, Report, Samples
from pools import CONTENDERS
from workers import served_by

from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.provision import ServerMissing, program
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.lab.servers import APPS, Server, uwsgi

__all__ = ["run"]

DRIVER = "psycopg"
CLIENTS = 8
GUNICORN = {
    "gunicorn sync": ("--worker-class=sync", "--workers=4"),
    "gunicorn gthread": ("--worker-class=gthread", "--workers=2", "--threads=4"),
    "gunicorn gevent": ("--worker-class=gevent", "--workers=2"),
}
UWSGI = ("--master", "--lazy-apps", "--processes=2", "--threads=4", "--disable-logging")
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}  # ms


def run(effort: Effort, report: Report) -> None:
    try:
        wrk = program("wrk", package="wrk")
    except ServerMissing as missing:
        report.skip("throughput", missing)
        return
    with (
        PostgreSQL(settings={"max_connections": "400"}) as database,
        FaultProxy(database.host, database.port) as proxy,
        tempfile.TemporaryDirectory() as directory,
    ):
        for delay in effort.served_delays:
            proxy.delay(delay)
            address = (proxy.host, proxy.port) if delay else (database.host, database.port)
            url = database.url_through(*address, DRIVER)
            for kind in effort.servers:
                with _served(kind, effort.served or CONTENDERS, url, Path(directory)) as servers:
                    _load(effort, report, wrk, kind, delay, servers)


@contextmanager
def _served(kind: str, contenders: tuple[str, ...], url: str, directory: Path) -> Iterator[dict[str, str]]:
    """The address of each contender's server."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_server(kind, name, url, directory)) for name in contenders}
        yield {name: server.ready("/echo?token=first") for name, server in servers.items()}


def _server(kind: str, contender: str, url: str, directory: Path) -> Server:
    if kind != "uWSGI":
        return served_by(contender, url, directory, *GUNICORN[kind], "--graceful-timeout=2")
    return uwsgi(
        "echo:contender()",
        *UWSGI,
        guarded=contender == "guard",
        directory=directory,
        path=[APPS],
        ECHO_POOL=contender,
        DATABASE_URL=url,
    )


def _load(effort: Effort, report: Report, wrk: Path, kind: str, delay: float, servers: dict[str, str]) -> None:
    rates: Samples = {name: [] for name in servers}
    halves: Samples = {name: [] for name in servers}
    tails: Samples = {name: [] for name in servers}
    for number in range(-1, effort.load_rounds):  # the first warms up
        for name, address in servers.items():
            rate, half, tail = _wrk(wrk, address, 1 if number < 0 else effort.load_seconds)
            if number >= 0:
                rates[name].append(rate)
                halves[name].append(half)
                tails[name].append(tail)
    where = place(kind, delay)
    row = report.row("throughput", where, rates, "requests/s", more=True)
    report.row("latency, p50", where, halves, "ms")
    report.row("latency, p99", where, tails, "ms")
    if kind == "gunicorn gthread":
        report.goal(f"throughput, {where}: guard / nothing", row.ratio("guard"), least=0.98)
        least = 1.25 if delay else 1.05
        report.goal(f"throughput, {where}: guard / pool_pre_ping", row.ratio("guard", "pool_pre_ping"), least=least)


def _wrk(wrk: Path, address: str, seconds: int) -> tuple[float, float, float]:
    """Requests per second, p50 and p99 in ms. Raises RuntimeError if any request failed."""
    command = [str(wrk), "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--latency", f"{address}/echo?token=right"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told or re.search(r"(connect|timeout) [1-9]", told):
        raise RuntimeError(f"requests failed:\n{told}")
    rate = re.search(r"Requests/sec: +([\d.]+)", told)
    assert rate is not None, told
    return float(rate[1]), _percentile(told, "50"), _percentile(told, "99")


def _percentile(told: str, percent: str) -> float:
    found = re.search(rf"^ +{percent}% +([\d.]+)(us|ms|s|m)$", told, re.MULTILINE)
    assert found is not None, told
    return float(found[1]) * _UNITS[found[2]]
