"""What happens at the primary, by whatever way: a request that writes there has a position to tell its client.

Sessions tell of a write before it is sent (`session.writes`), to leave the replica in time. Here it is heard of as it
is sent, also by a Core connection. Of a connection taken past SQLAlchemy's Connection the statements are not to be
seen: it counts as a write.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import Dialect

from wsgi_dbguard import transactions
from wsgi_dbguard.request import Request

from .route import Route

__all__ = ["watch"]


def watch(primary: Engine) -> None:
    """Have the routes of requests know what is written at `primary`. At the second call, nothing."""
    transactions.watch(primary)
    if _on_write not in transactions.sent:
        transactions.sent.append(_on_write)
        transactions.taken.append(_on_taken)


def _routes(request: Request, dialect: Dialect) -> Iterator[Route]:
    """The routes to the primary with that dialect: of `request`, and of those whose application made it."""
    for each in request.chain():
        for extra in each.extras:
            if isinstance(extra, Route) and extra.group.primary.dialect is dialect:
                yield extra


def _on_write(request: Request, connection: Connection, reads: bool) -> None:
    if request.safe and reads:
        return
    routes = list(_routes(request, connection.dialect))
    if not routes:
        return
    # In a request that is not safe a function that a SELECT calls may write.
    routes[0].group.write(request, "wrote" if request.safe else "unsafe")
    transaction = None if reads else connection.get_transaction()
    for route in routes:
        route.writes(transaction)


def _on_taken(request: Request, dialect: Dialect) -> None:
    for route in _routes(request, dialect):
        route.unseen += 1
