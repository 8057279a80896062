"""What happens at the primary, by whatever way: a request that writes there has a position to tell its client.

Sessions tell of a write before it is sent (`session.writes`), to leave the replica in time. Here it is seen as it is
sent, also by a Core connection. Of a connection taken past SQLAlchemy's Connection the statements are not to be seen:
it counts as a write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event

from wsgi_dbguard.request import current
from wsgi_dbguard.transactions import only_reads

if TYPE_CHECKING:
    from .replicas import Replicas

__all__ = ["Watcher"]


class Watcher:
    """Listens to the primary's engine for `group`."""

    def __init__(self, group: Replicas) -> None:
        self._group = group
        event.listen(group.primary, "checkout", self._on_checkout)
        event.listen(group.primary, "engine_connect", self._on_connection)
        event.listen(group.primary, "before_cursor_execute", self._on_statement)
        for name in ("commit", "rollback", "commit_twophase", "rollback_twophase"):
            event.listen(group.primary, name, self._on_end)

    def _on_checkout(self, *ignored: Any) -> None:
        for route in self._group.routes(current.get()):
            route.unseen += 1

    def _on_connection(self, connection: Connection) -> None:
        for route in self._group.routes(current.get()):
            route.unseen -= 1  # it was a Connection that took it

    def _on_statement(self, connection: Connection, cursor: Any, statement: str, *ignored: Any) -> None:
        request = current.get()
        if request is None:
            return
        reads = only_reads(statement)
        if request.safe and reads:
            return
        # In a request that is not safe a function that a SELECT calls may write.
        self._group.write(request, "wrote" if request.safe else "unsafe")
        for route in self._group.routes(request):
            route.wrote = True
            if not reads:
                route.unfinished.add(connection)

    def _on_end(self, connection: Connection, *ignored: Any) -> None:
        for route in self._group.routes(current.get()):
            route.unfinished.discard(connection)
