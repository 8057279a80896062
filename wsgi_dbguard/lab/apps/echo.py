"""A token echo by way of the database, plain WSGI on plain SQLAlchemy, that misbehaves at import as it is told to.

``GET /echo?token=T`` answers with T, which went to the database and back, ``POST /write?token=T`` as well when T is in
the table ``written``; any other path answers without the database.
``DATABASE_URL`` names the database, ``ECHO_POOL`` what looks after the pool (one of pools.py; ``echo:contender()`` is
served then), and two variables say what the import does:

- ``ECHO_CONNECTIONS=2``: open two connections at once and give them back to the pool.
- ``ECHO_TRANSACTION=R``: insert R into the table ``imported`` and leave that transaction open for ever.

Served by its bare name (``echo:unguarded()``), with this directory on the path: to import it as a part of
`wsgi_dbguard` would bring the guard into the unguarded server as well. No example of how to write an application:
deploy/app.py is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from pools import make_engine, wrap
from sqlalchemy import Connection, TextClause, text

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

pool = os.environ.get("ECHO_POOL", "guard")  # a pool like any other, which hears the guard where there is one
engine = make_engine(pool, os.environ["DATABASE_URL"])
left_open: list[Connection] = []
PAGES: dict[str, tuple[Callable[[], AbstractContextManager[Connection]], TextClause]] = {
    "/echo": (engine.connect, text("SELECT :token")),
    "/write": (engine.begin, text("INSERT INTO written VALUES (:token) RETURNING token")),
}


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    answer = ""
    if environ["PATH_INFO"] in PAGES:
        begin, statement = PAGES[environ["PATH_INFO"]]
        token = parse_qs(environ["QUERY_STRING"])["token"][0]
        with begin() as connection:
            answer = connection.scalar(statement, {"token": token})
    # A connection that two processes share may answer with anything, None included.
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [str(answer).encode()]


def unguarded() -> WSGIApplication:
    if run := os.environ.get("ECHO_TRANSACTION"):
        connection = engine.connect()  # before the others: it would take one of theirs out of the pool
        connection.execute(text("INSERT INTO imported VALUES (:run)"), {"run": run})
        left_open.append(connection)
    with ExitStack() as stack:
        for _ in range(int(os.environ.get("ECHO_CONNECTIONS", "0"))):
            stack.enter_context(engine.connect()).execute(text("SELECT 1"))
    return application


def guarded() -> WSGIApplication:
    from wsgi_dbguard import DBGuard

    return DBGuard(unguarded())


def contender() -> WSGIApplication:
    return wrap(pool, unguarded(), engine)
