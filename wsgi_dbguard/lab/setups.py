"""What may happen to the workers of a server under load, for `recycling`: they are replaced, added, killed; they fork.

Example::

    for name, setup in SETUPS.items():
        print(name, recycle(setup, database, guarded=True, directory=directory))
"""

from __future__ import annotations

import os
import signal

from .process import gone
from .recycling import SOME, Act, Running, Setup
from .servers import APPS

__all__ = ["FORKING", "INTERRUPTING", "RECYCLING", "RELOADING", "SETUPS", "recycled"]


def answers(number: int) -> Act:
    """Nothing but the load."""
    return lambda running: running.answered(number)


def recycled(times: int) -> Act:
    """So many workers are replaced, because they have served enough."""

    def act(running: Running) -> None:
        begun = len(running.spawned())
        running.wait(lambda: len(running.spawned()) >= begun + times, f"{times} recycled workers")

    return act


def hup(running: Running) -> None:
    old = running.spawned()
    running.server.child.send(signal.SIGHUP)
    running.replaced(old, 2)


def usr2(running: Running) -> None:
    """A second master with workers of its own takes over, and the old one is told to end."""
    _, master, *_ = running.server.processes
    old = running.spawned()
    os.kill(master, signal.SIGUSR2)
    running.wait(lambda: len(running.spawned()) >= len(old) + 2, "workers of the new master")
    running.answered(SOME)
    # Not SIGWINCH before: gunicorn ignores it unless it is a daemon.
    os.kill(master, signal.SIGTERM)
    running.wait(lambda: all(map(gone, [master, *old])), "the end of the old master and its workers")


def chain(running: Running) -> None:
    old = running.spawned()
    running.command("c")
    running.replaced(old, 2)
    running.wait(lambda: "chain reloading complete" in running.server.child.output(), "the end of the chain")


def cheaper(running: Running) -> None:
    """A worker more, and a worker less."""
    begun = len(running.spawned())
    running.command("+")
    running.wait(lambda: len(running.spawned()) > begun, "a worker more")
    running.answered(SOME)
    processes = len(running.server.processes)
    running.command("-")
    running.wait(lambda: len(running.server.processes) < processes, "a worker less")


def mules(running: Running) -> None:
    """They ask, too."""
    told = running.server.child.log.with_name("mules")
    running.wait(lambda: told.exists() and told.read_text().count("\n") >= 40, "40 answers for mules")
    wrong = [line for line in told.read_text().splitlines() if line != "right"]
    if wrong:
        raise AssertionError(wrong[:5])


def interrupted(running: Running) -> None:
    """The server kills the worker in the middle of a query."""
    begun = len(running.spawned())
    running.interrupted(seconds=20.0)
    running.wait(lambda: len(running.spawned()) > begun, "another worker")


def _gunicorn(worker: str, *options: str, act: Act, preloaded: bool = True, **more: object) -> Setup:
    threads = ("--threads=2",) if worker == "gthread" else ()
    preload = ("--preload",) if preloaded else ()
    common = (f"--worker-class={worker}", *threads, *preload, "--workers=2", "--graceful-timeout=20")
    return Setup("gunicorn", (*common, *options), act, preloaded, **more)  # type: ignore[arg-type]


def _uwsgi(*options: str, act: Act, preloaded: bool = True, **more: object) -> Setup:
    lazy = () if preloaded else ("--lazy-apps",)
    return Setup("uWSGI", (*lazy, "--master-fifo=fifo", *options), act, preloaded, **more)  # type: ignore[arg-type]


MULE = APPS / "mule.py"
MASTER = ("--master", "--processes=2")
# uWSGI lets workers live for 10 seconds at least, and waits where they end within one.
ENOUGH = ("--max-requests=20", "--min-worker-lifetime=0", "--forkbomb-delay=0")

OS_FORK = "/fork?by=os.fork&token={token}"
MULTIPROCESSING = "/fork?by=multiprocessing&token={token}"

RECYCLING = {
    "gunicorn sync, preload, max_requests": _gunicorn("sync", "--max-requests=20", act=recycled(4)),
    "gunicorn gthread, preload, max_requests": _gunicorn("gthread", "--max-requests=20", act=recycled(4)),
    "gunicorn gevent, preload, max_requests": _gunicorn("gevent", "--max-requests=20", act=recycled(4)),
    "gunicorn sync, max_requests": _gunicorn("sync", "--max-requests=20", act=recycled(3), preloaded=False),
    "gunicorn gthread, max_requests": _gunicorn("gthread", "--max-requests=20", act=recycled(3), preloaded=False),
    "gunicorn gevent, max_requests": _gunicorn("gevent", "--max-requests=20", act=recycled(3), preloaded=False),
    "uWSGI, max-requests": _uwsgi(*MASTER, *ENOUGH, act=recycled(4)),
    "uWSGI threads, max-requests": _uwsgi(*MASTER, "--threads=2", *ENOUGH, act=recycled(4)),
    "uWSGI lazy-apps, max-requests": _uwsgi(*MASTER, "--threads=2", *ENOUGH, act=recycled(3), preloaded=False),
}
"""Workers end when they have served enough, and others take their places."""

RELOADING = {
    "gunicorn sync, preload, HUP": _gunicorn("sync", act=hup),
    "gunicorn gthread, preload, HUP": _gunicorn("gthread", act=hup),
    "gunicorn gevent, preload, HUP": _gunicorn("gevent", act=hup),
    "gunicorn gthread, HUP": _gunicorn("gthread", act=hup, preloaded=False),
    "gunicorn sync, preload, USR2": _gunicorn("sync", act=usr2, adopted=True),
    "gunicorn gthread, preload, USR2": _gunicorn("gthread", act=usr2, adopted=True),
    "gunicorn gevent, preload, USR2": _gunicorn("gevent", act=usr2, adopted=True),
    "gunicorn gthread, USR2": _gunicorn("gthread", act=usr2, preloaded=False, adopted=True),
    "uWSGI chain reload": _uwsgi(*MASTER, "--threads=2", act=chain),
    "uWSGI lazy-apps, chain reload": _uwsgi(*MASTER, "--threads=2", act=chain, preloaded=False),
    "uWSGI cheaper": _uwsgi(
        "--master", "--processes=3", "--cheaper=1", "--cheaper-initial=1", "--cheaper-algo=manual",
        act=cheaper, workers=1,
    ),
}  # fmt: skip
"""All workers are replaced, or their number changes."""

INTERRUPTING = {
    "gunicorn sync, preload, timeout": _gunicorn("sync", "--timeout=6", act=interrupted),
    "uWSGI harakiri": _uwsgi(*MASTER, "--harakiri=6", act=interrupted),
}
"""A worker is killed in the middle of a query."""

FORKING = {
    "gunicorn sync, preload, os.fork": _gunicorn("sync", act=answers(SOME), path=OS_FORK),
    "gunicorn gthread, preload, multiprocessing": _gunicorn("gthread", act=answers(SOME), path=MULTIPROCESSING),
    "uWSGI os.fork": _uwsgi(*MASTER, act=answers(SOME), path=OS_FORK),
    "uWSGI threads, multiprocessing": _uwsgi(*MASTER, "--threads=2", act=answers(SOME), path=MULTIPROCESSING),
    "uWSGI mules": _uwsgi(*MASTER, f"--mule={MULE}", f"--mule={MULE}", act=mules),
    "uWSGI without master": Setup("uWSGI", ("--processes=2", "--threads=2"), answers(300)),
}
"""There are more processes than workers, or nobody above them."""

SETUPS = {**RECYCLING, **RELOADING, **INTERRUPTING, **FORKING}
