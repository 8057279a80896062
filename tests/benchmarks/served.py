"""Throughput and latency of a page with one query, under real servers: every contender, loaded in turns by wrk.

Two workers with four threads each (gevent: two workers; sync: four), eight clients with kept connections. Under gthread
it is one worker with eight threads: how clients are shared out between workers is chance, no two loads have it in
common, and two servers that are the same differed by a fifth for it. And it is a new one in each round: by where things
lie in memory, two processes that do the same differ by a twentieth for as long as they live, more than the goals ask to
be told apart.

Server, database and load share this machine: the ratios say what a contender costs, the figures themselves say little;
CPU time of the server's processes for each request is the steadiest of them. With a delay the proxy works here as well,
about as much as a worker does, so that two cores are as busy as without one. psycopg, because every contender and
gevent work with it.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from checkouts import place
from measuring import Clock, Effort, Report, Samples
from pools import CONTENDERS, FLOOR
from workers import served_by

from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.provision import ServerMissing, program
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.lab.servers import APPS, Server, uwsgi

__all__ = ["run"]

DRIVER = "psycopg"
CLIENTS = 8
GTHREAD = "gunicorn gthread"  # of which the goals speak
GUNICORN = {
    "gunicorn sync": ("--worker-class=sync", "--workers=4"),
    GTHREAD: ("--worker-class=gthread", "--workers=1", "--threads=8"),
    "gunicorn gevent": ("--worker-class=gevent", "--workers=2"),
}
UWSGI = ("--master", "--lazy-apps", "--processes=2", "--threads=4", "--disable-logging")
WHATS: dict[str, tuple[str, Clock | None]] = {
    "throughput": ("requests/s", None),
    "latency, p50": ("ms", None),
    "latency, p99": ("ms", None),
    "a request, in the server's processes": ("µs", "CPU"),
}
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
                contenders = (*(effort.served or CONTENDERS), FLOOR)
                start = partial(_served, kind, contenders, url, Path(directory))
                samples: dict[str, Samples] = {what: {name: [] for name in contenders} for what in WHATS}
                _load(effort, wrk, kind, start, samples)
                _tell(report, kind, delay, samples)


@contextmanager
def _served(kind: str, contenders: tuple[str, ...], url: str, directory: Path) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_server(kind, name, url, directory)) for name in contenders}
        for server in servers.values():
            server.ready("/echo?token=first")
        yield servers


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


Start = Callable[[], AbstractContextManager[dict[str, Server]]]


def _load(effort: Effort, wrk: Path, kind: str, start: Start, samples: dict[str, Samples]) -> None:
    shuffle = random.Random(1).sample
    lives, rounds = (effort.load_lives, 1) if kind == GTHREAD else (1, effort.load_rounds)
    for _ in range(lives):
        with start() as servers:
            for number in range(-1, rounds):  # the first warms up
                for name in shuffle(list(servers), len(servers)):
                    told = _wrk(wrk, servers[name], 1 if number < 0 else effort.load_seconds)
                    for what, figure in told.items():
                        if number >= 0:
                            samples[what][name].append(figure)


def _tell(report: Report, kind: str, delay: float, samples: dict[str, Samples]) -> None:
    where = place(kind, delay)
    rows = {
        what: report.row(what, where, samples[what], unit, more=what == "throughput", clock=clock)
        for what, (unit, clock) in WHATS.items()
    }
    row = rows["throughput"]
    if kind == GTHREAD:
        for base, least in (("nothing", 0.98), ("pool_pre_ping", 1.25 if delay else 1.05)):
            text = f"throughput, {where}: guard / {base}"
            report.goal(text, row.ratio("guard", base), least=least, floor=row.ratio(FLOOR, base))


def _wrk(wrk: Path, server: Server, seconds: int) -> dict[str, float]:
    """One load, as in WHATS. Raises RuntimeError if any request failed."""
    command = [str(wrk), "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--latency", f"{server.url}/echo?token=right"]
    before = _cpu(server)
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = _cpu(server) - before
    if "Non-2xx" in told or re.search(r"(connect|timeout) [1-9]", told):
        raise RuntimeError(f"requests failed:\n{told}")
    rate = re.search(r"Requests/sec: +([\d.]+)", told)
    number = re.search(r"(\d+) requests in", told)
    assert rate is not None, told
    assert number is not None, told
    figures = (float(rate[1]), _percentile(told, "50"), _percentile(told, "99"), spent / int(number[1]) * 1e6)
    return dict(zip(WHATS, figures, strict=True))


def _cpu(server: Server) -> float:
    """Seconds of CPU that the server's processes have used; proc_pid_stat(5)."""
    total = 0.0
    for pid in server.processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def _percentile(told: str, percent: str) -> float:
    found = re.search(rf"^ +{percent}% +([\d.]+)(us|ms|s|m)$", told, re.MULTILINE)
    assert found is not None, told
    return float(found[1]) * _UNITS[found[2]]
