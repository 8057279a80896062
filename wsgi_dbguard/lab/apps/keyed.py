"""Orders by POST, and moments at which a worker can be held: to be killed or stopped there.

``POST /orders`` inserts a row with what it is sent, and answers with that; any other path answers without the database.
``DATABASE_URL`` names the database, ``KEYED_LEASE`` is the lease of a key in seconds, and ``KEYED_HOLD`` names a
directory: where it has a file ``hold-MOMENT``, the first request to come to that moment takes the file away, writes its
process id into ``held-MOMENT``, and goes on when there is a file ``go``.

The moments: ``claimed`` (the application is called), ``inserted``, ``committed``, ``closing`` (the response was sent,
and is being closed). Served by its bare name (``keyed:guarded()``), as echo.py is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LONGEST = 120.0  # seconds that a request is held

engine = create_engine(os.environ["DATABASE_URL"])
directory = Path(os.environ["KEYED_HOLD"])


def moment(name: str) -> None:
    try:
        (directory / f"hold-{name}").unlink()
    except FileNotFoundError:
        return
    told = directory / f"told-{name}"
    told.write_text(str(os.getpid()))
    told.rename(directory / f"held-{name}")
    until = time.monotonic() + LONGEST
    while not (directory / "go").exists() and time.monotonic() < until:
        time.sleep(0.01)


class Answer:
    """Without a length: it is known to be complete when there is no more."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self.content

    def close(self) -> None:
        moment("closing")


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    content = b"well"
    if environ["PATH_INFO"] == "/orders":
        content = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        moment("claimed")
        with Session(engine) as session:
            session.execute(text("insert into orders values (:item)"), {"item": content.decode()})
            moment("inserted")
            session.commit()
        moment("committed")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Answer(content)


def unguarded() -> WSGIApplication:
    return application


def guarded() -> WSGIApplication:
    from wsgi_dbguard import DBGuard
    from wsgi_dbguard.idempotency import Idempotent

    lease = float(os.environ["KEYED_LEASE"])
    return DBGuard(Idempotent(application, engine, principal=None, lease=lease), engine)
