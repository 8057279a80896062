"""A request that is interrupted in the middle of its query: by Ctrl-C, by a server's worker timeout, by gevent.Timeout.

The interrupt is real, and so it needs a process of its own: signals come to a main thread, and gevent patches the whole
process. The pool has one connection; if that came back to it with the answer to the interrupted query still on its way,
the next request would get that one. Run by `interrupt`, as a module, once for each kind.

Example::

    counts = interrupt("gevent.Timeout", url, contender="guard")
    assert counts["wrong"] == 0
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Engine, create_engine, text

__all__ = ["KINDS", "interrupt"]

KINDS = ("KeyboardInterrupt", "SystemExit", "gevent.Timeout")
AFTER = 0.2  # seconds
QUERY = 0.6  # seconds that the query takes; a driver in C notices a signal only when it ends
ROUNDS = 2
TIMEOUT = 120.0  # seconds for the whole process, which without a hang takes four

_SLEEP = {
    "postgresql": "SELECT CAST(:token AS CHAR(36)), pg_sleep(:seconds)",
    "mysql": "SELECT CAST(:token AS CHAR(36)), SLEEP(:seconds)",
    "mariadb": "SELECT CAST(:token AS CHAR(36)), SLEEP(:seconds)",
}


def interrupt(kind: str, url: URL, *, contender: str) -> dict[str, Any]:
    """Interrupt queries in a process of their own; counts of the requests that came after them.

    Keys: requests, failed, wrong, slowest (seconds), interrupted (queries), errors.
    `kind` is one of `KINDS`. Raises subprocess.TimeoutExpired when it hangs, RuntimeError when it cannot run.
    """
    patched = ["gevent.monkey", "--module"] if kind == "gevent.Timeout" else []
    argv = [*patched, __name__, kind, url.render_as_string(hide_password=False), contender]
    done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stderr.strip()}")
    counts: dict[str, Any] = json.loads(done.stdout)
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
    limit = _gevent_timeout if kind == "gevent.Timeout" else _signalled
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


def _main(kind: str, url: str, contender: str) -> None:
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
    print(json.dumps(counts))


if __name__ == "__main__":
    _main(*sys.argv[1:])
