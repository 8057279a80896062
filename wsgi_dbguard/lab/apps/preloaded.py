"""The example application of deploy/, with queries at import: two connections are in its pool when the master forks.

So it is in applications that read settings from the database, create their tables or warm their caches at import.
Served by its bare name (``preloaded:unguarded()``), with this directory and deploy/ on the path, by gunicorn
``--preload``.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from app import create_app, db
from sqlalchemy import text

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

CONNECTIONS = 2


def unguarded() -> WSGIApplication:
    application = create_app()
    with application.app_context(), ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(db.engine.connect()).execute(text("SELECT 1"))
    return application


def guarded() -> WSGIApplication:
    from wsgi_dbguard import DBGuard

    return DBGuard(unguarded())
