"""Django's own connections (``django.db.connections``) after a fork: the child is cut off from those of its parent.

They are made known to `wsgi_dbguard.fork` as SQLAlchemy's are, each as a `Link` with something that stands for a pool
entry. It replaces the descriptor in the child, keeps the driver's object for ever, and here Django's wrapper lets go of
it: the next query opens a connection. Where the fork was made inside of ``transaction.atomic()``, the child meets
`TransactionManagementError` until it leaves the block, by Django's own rules for a connection that was closed there.

Found by Django's signal ``connection_created``. Not known: SQLite's, where there is no wire to share (do not open a
SQLite file before a fork), and what lies unused in a pool of psycopg's (``OPTIONS["pool"]``, check dbguard.W003).
"""

from __future__ import annotations

import weakref
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.signals import connection_created

from wsgi_dbguard import registry
from wsgi_dbguard.link import Link

__all__ = ["watch"]

_entries: weakref.WeakKeyDictionary[Any, _Entry] = weakref.WeakKeyDictionary()  # by Django's wrapper


class _Entry:
    """What `Link` and `fork` ask of a pool entry, for one of Django's wrappers."""

    def __init__(self, wrapper: Any) -> None:
        # Weakly: Django's wrapper goes with its thread, and the connection with that, without the garbage collector.
        self._wrapper: weakref.ref[Any] = weakref.ref(wrapper)
        self.info: dict[str, Any] = {}
        self.link: Link | None = None

    @property
    def dbapi_connection(self) -> Any:
        wrapper = self._wrapper()
        return None if wrapper is None else wrapper.connection

    @dbapi_connection.setter
    def dbapi_connection(self, nothing: None) -> None:
        wrapper = self._wrapper()
        if wrapper is None:
            return
        wrapper.run_on_commit = []
        if wrapper.in_atomic_block:
            # What its close() does in such a block; the end of the block lets the connection go.
            wrapper.closed_in_transaction = True
            wrapper.needs_rollback = True
        else:
            wrapper.connection = None

    @property
    def in_use(self) -> bool:
        return self.dbapi_connection is not None


def watch() -> None:
    """From now on; and of this thread, what is open already. A second call is harmless."""
    connection_created.connect(_created, dispatch_uid=__name__)
    if not settings.configured:  # no settings yet, so no connections; asking would load them
        return
    for wrapper in connections.all(initialized_only=True):
        if wrapper.connection is not None and wrapper not in _entries:
            _created(None, wrapper)


def _created(sender: Any, connection: Any, **ignored: Any) -> None:
    if connection.vendor == "sqlite":
        return
    entry = _entries.get(connection)
    if entry is None:
        entry = _entries[connection] = _Entry(connection)
    if entry.link is not None:
        registry.forget(entry.link)
    stands_for: Any = entry
    entry.link = Link(connection.connection, stands_for, gone=registry.forget)
    registry.links.add(entry.link)
