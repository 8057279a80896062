"""The token echo of echo.py, and two requests that are hard on the worker: one that takes long, and one that forks.

- ``GET /slow?token=T&seconds=S``: as ``/echo``, but the database takes S seconds to answer.
- ``GET /fork?token=T&by=os.fork`` (or ``multiprocessing``): a child process asks the database for T through the same
  engine, and ends, while the request has a connection in use and another lies in the pool. Answers with T when the
  child was told T on a connection of its own and the request's connection works as before, else with what was wrong.

Each process says so when it serves its first request. What the import does, and how this is served, is as in echo.py.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
from collections.abc import Iterable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection as End
from typing import IO, TYPE_CHECKING
from urllib.parse import parse_qs

import echo
from sqlalchemy import Connection, text

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LONGEST = 10  # seconds that a child may take
POSTGRESQL = echo.engine.dialect.name == "postgresql"
BACKEND = "pg_backend_pid()" if POSTGRESQL else "connection_id()"
SLEEP = "pg_sleep(:seconds)" if POSTGRESQL else "sleep(:seconds)"


serving: set[int] = set()


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    if os.getpid() not in serving:
        serving.add(os.getpid())
        print(f"process {os.getpid()} serves", flush=True)
    asked = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    if environ["PATH_INFO"] == "/slow":
        with echo.engine.connect() as connection:
            connection.execute(text(f"SELECT {SLEEP}"), {"seconds": float(asked["seconds"])})
    elif environ["PATH_INFO"] == "/fork":
        answer = fork(asked["token"], asked["by"])
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [answer.encode()]
    return echo.application(environ, start_response)


def fork(token: str, by: str) -> str:
    with echo.engine.connect() as connection:
        before = ask(connection, token)
        with echo.engine.connect() as idle:
            ours = {before[1], ask(idle, token)[1]}
        with tempfile.TemporaryFile("w+") as where:
            told = (by_os_fork if by == "os.fork" else by_multiprocessing)(token, where)
            where.seek(0)
            hung = where.read()
        after = ask(connection, token)
    if told is None or told[0] != token or told[1] in ours or after != before:
        return f"child: {told}, parent before: {before}, after: {after}{hung and ', hung in: '}{hung}"
    return token


def ask(connection: Connection, token: str) -> tuple[str, int]:
    """The token as the database has it, and which of its backends that was."""
    answer, backend = connection.execute(text(f"SELECT :token, {BACKEND}"), {"token": token}).one()
    return str(answer), int(backend)


def by_os_fork(token: str, where: IO[str]) -> tuple[str, int] | None:
    ours, theirs = Pipe(duplex=False)
    pid = os.fork()
    if not pid:
        try:
            child(theirs, token, where)
        finally:
            os._exit(0)
    told = answer_of(ours, theirs)
    os.waitpid(pid, 0)
    return told


def by_multiprocessing(token: str, where: IO[str]) -> tuple[str, int] | None:
    ours, theirs = Pipe(duplex=False)
    process = get_context("fork").Process(target=child, args=(theirs, token, where))
    process.start()
    told = answer_of(ours, theirs)
    process.join()
    process.close()
    return told


def child(theirs: End, token: str, where: IO[str]) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LONGEST)
    faulthandler.dump_traceback_later(LONGEST - 2, file=where)
    with echo.engine.connect() as connection:
        theirs.send(ask(connection, token))
    echo.engine.dispose()


def answer_of(ours: End, theirs: End) -> tuple[str, int] | None:
    theirs.close()
    with ours:
        try:
            told: tuple[str, int] = ours.recv()
        except EOFError:
            return None
        return told


def unguarded() -> WSGIApplication:
    echo.unguarded()
    return application


def guarded() -> WSGIApplication:
    from wsgi_dbguard import DBGuard

    return DBGuard(unguarded())
