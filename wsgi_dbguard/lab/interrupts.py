"""A request that is interrupted in the middle of its query: by Ctrl-C, by a server's worker timeout, by gevent.Timeout.

The interrupt is real, and so it needs a process of its own: signals come to a main thread, and gevent patches the whole
process. The pool has one connection; if that came back to it with the answer to the interrupted query still on its way,
the next request would get that one. Run by `interrupt`, as a module: of signals once, and that process forks one for
each cell, which has nothing to import any more; of gevent, which does not survive that, once for each cell.

Example::

    [counts] = interrupt("gevent.Timeout", [(url, "guard")])
    assert counts["wrong"] == 0
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url, text

__all__ = ["KINDS", "interrupt"]

GEVENT = "gevent.Timeout"
KINDS = ("KeyboardInterrupt", "SystemExit", GEVENT)
AFTER = 0.2  # seconds
QUERY = 0.6  # seconds that the query takes; a driver in C notices a signal only when it ends
ROUNDS = 2
AT_ONCE = 6  # cells, which for the most part wait
TIMEOUT = 240.0  # seconds for all cells, of which each takes four without a hang

_SLEEP = {
    "postgresql": "SELECT CAST(:token AS CHAR(36)), pg_sleep(:seconds)",
    "mysql": "SELECT CAST(:token AS CHAR(36)), SLEEP(:seconds)",
    "mariadb": "SELECT CAST(:token AS CHAR(36)), SLEEP(:seconds)",
}


def interrupt(kind: str, cells: Iterable[tuple[URL, str]]) -> list[dict[str, Any]]:
    """Interrupt queries, each (URL, contender) in a process of its own; counts of the requests that came after.

    Keys: requests, failed, wrong, slowest (seconds), interrupted (queries), errors.
    `kind` is one of `KINDS`. Raises subprocess.TimeoutExpired when one hangs, RuntimeError when one cannot run.
    """
    told = [(url.render_as_string(hide_password=False), contender) for url, contender in cells]
    if kind != GEVENT:
        return _process(kind, told)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [counts for [counts] in pool.map(lambda cell: _process(kind, [cell]), told)]


def _process(kind: str, cells: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    patched = ["gevent.monkey", "--module"] if kind == GEVENT else []
    command = [sys.executable, "-m", *patched, __name__, kind]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            answer, complaints = process.communicate(json.dumps(cells), TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # its children as well
            raise
    if process.returncode:
        raise RuntimeError(f"{kind}: {complaints.strip()}")
    counts: list[dict[str, Any]] = json.loads(answer)
    return counts


@contextmanager
def _gevent_timeout() -> Iterator[None]:
    import gevent

    with gevent.Timeout(AFTER):
        yield


@contextmanager
def _signalled() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _ask(engine: Engine, token: str, seconds: float) -> str:
    with engine.connect() as connection:
        row = connection.execute(text(_SLEEP[engine.dialect.name]), {"token": token, "seconds": seconds}).one()
    return str(row[0]).strip()


def _ask_raw(engine: Engine, token: str, seconds: float) -> str:
    statement = _SLEEP[engine.dialect.name].replace(":token", f"'{token}'").replace(":seconds", str(seconds))
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute(statement)
        row = cursor.fetchone()
        cursor.close()
    finally:
        connection.close()
    assert row is not None
    return str(row[0]).strip()


def _play(kind: str, engine: Engine, ask: Callable[[Engine, str, float], str], counts: dict[str, Any]) -> None:
    limit = _gevent_timeout if kind == GEVENT else _signalled
    for number in range(ROUNDS):
        try:
            with limit():
                ask(engine, f"{number}-interrupted", QUERY)
        except Exception as error:
            counts["errors"].append(_line(error))
        except BaseException:
            counts["interrupted"] += 1
        for token in (f"{number}-first", f"{number}-second", f"{number}-third"):
            begun = time.monotonic()
            counts["requests"] += 1
            try:
                counts["wrong"] += ask(engine, token, 0.0) != token
            except Exception as error:
                counts["failed"] += 1
                counts["errors"].append(_line(error))
            counts["slowest"] = max(counts["slowest"], time.monotonic() - begun)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _cell(kind: str, url: str, contender: str) -> dict[str, Any]:
    def leave(number: int, frame: object) -> None:
        if kind == "KeyboardInterrupt":
            raise KeyboardInterrupt
        raise SystemExit(1)  # as gunicorn's workers do on SIGABRT

    signal.signal(signal.SIGALRM, leave)
    counts: dict[str, Any] = {"requests": 0, "failed": 0, "wrong": 0, "slowest": 0.0, "interrupted": 0, "errors": []}
    for ask in (_ask, _ask_raw):  # SQLAlchemy sees the interrupt, or does not
        engine = create_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=contender == "pool_pre_ping")
        if contender == "guard":
            from wsgi_dbguard import guard

            guard(engine, ping_timeout=0.5)
        _ask(engine, "before", 0.0)
        _play(kind, engine, ask, counts)
        engine.dispose()
    return counts


def _forked(kind: str, url: str, contender: str) -> int:
    """A child that plays the cell: where it writes the counts, or nothing when it cannot."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return reading
    try:
        os.write(writing, json.dumps(_cell(kind, url, contender)).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _main(kind: str) -> None:
    cells = json.load(sys.stdin)
    if kind == GEVENT:
        print(json.dumps([_cell(kind, *cell) for cell in cells]))
        return
    for url, _ in cells:
        make_url(url).get_dialect().import_dbapi()
    running: deque[int] = deque()
    counts = []
    for number in range(len(cells) + AT_ONCE):
        if number < len(cells):
            running.append(_forked(kind, *cells[number]))
        if running and number >= AT_ONCE - 1:
            with open(running.popleft(), "rb") as told:
                counts.append(json.loads(told.read() or b"null"))
    if None in counts:
        sys.exit(1)
    print(json.dumps(counts))


if __name__ == "__main__":
    _main(*sys.argv[1:])
