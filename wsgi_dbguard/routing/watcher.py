"""What happens at the primary, by whatever way: a request that writes there has a position to tell its client.

Sessions tell of a write before it is sent (`session.writes`), to leave the replica in time. Here it is heard of as it
is sent, also by a Core connection. What is sent on a driver's own cursor is not to be seen: so a connection taken past
SQLAlchemy's Connection counts as a write, and in a request that is not safe each connection does.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.engine import Dialect

from wsgi_dbguard import transactions
from wsgi_dbguard.request import Request, unseen

from .route import Route

__all__ = ["watch"]


def watch(primary: Engine) -> None:
    """Have the routes of requests know what is written at `primary`. At the second call, nothing."""
    transactions.watch(primary)
    if _on_write not in transactions.sent:
        transactions.sent.append(_on_write)
        unseen.append(_note)


def _routes(request: Request, dialect: Dialect) -> Iterator[Route]:
    """The routes to the primary with that dialect: of `request`, and of those whose application made it."""
    for each in request.chain():
        for extra in each.extras:
            if isinstance(extra, Route) and extra.group.primary.dialect is dialect:
                yield extra


def _on_write(request: Request, connection: Connection, reads: bool) -> None:
    # In a request that is not safe a function that a SELECT calls may write.
    if not request.safe or not reads:
        _note(request, connection.dialect, None if reads else connection.get_transaction())


def _note(request: Request, dialect: Dialect, transaction: RootTransaction | None = None) -> None:
    routes = list(_routes(request, dialect))
    if routes:
        routes[0].group.write(request, "wrote" if request.safe else "unsafe")
    for route in routes:
        route.writes(transaction)
