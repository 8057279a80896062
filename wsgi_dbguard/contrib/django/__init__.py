"""Django: the guard around the application, for SQLAlchemy used beside Django's ORM or in its place.

In wsgi.py, in the place of ``django.core.wsgi``::

    from wsgi_dbguard.contrib.django import get_wsgi_application

    application = get_wsgi_application()

In settings.py any setting of `GuardConfig`, and the application for ``manage.py check``::

    DBGUARD_HOLD = 10.0
    INSTALLED_APPS = [..., "wsgi_dbguard.contrib.django"]

No middleware: Django's are inside of what has to be guarded. All SQLAlchemy engines of the process are guarded.

Django's own connections (``django.db.connections``) are not pooled by SQLAlchemy, so they are not checked; what Django
has for that is ``CONN_HEALTH_CHECKS``. But after a fork the child is cut off from those of its parent as it is from
SQLAlchemy's (see `connections`): Django by itself would go on using them, and two processes would talk on one wire.

The checks: E001 settings that are wrong, W001 (``--deploy``) WSGI_APPLICATION without a guard, W002 connections that
Django keeps without health checks, W003 Django's pool of psycopg connections, which nothing cuts off after a fork.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django.core.wsgi
from django.conf import settings as django_settings

from wsgi_dbguard.config import GuardConfig
from wsgi_dbguard.contrib import settings as keys
from wsgi_dbguard.middleware import DBGuard

from . import connections

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["configuration", "get_wsgi_application"]

# Before any application's ready() can open a connection: this is imported by then.
connections.watch()


def get_wsgi_application(*, render: WSGIApplication | None = None, **settings: Any) -> DBGuard:
    """Django's WSGI application, guarded. `settings` win over those of settings.py; `render` as of `DBGuard`.

    Raises:
        SettingError: (a ValueError) for an unknown or impossible setting.
    """
    application = django.core.wsgi.get_wsgi_application()
    return DBGuard(application, config=configuration(**settings), render=render)


def configuration(**settings: Any) -> GuardConfig:
    """The guard's, by Django's settings ``DBGUARD_<FIELD>``. Raises as `get_wsgi_application`."""
    names = [name for name in dir(django_settings) if name.startswith("DBGUARD_")]
    return keys.load({name: getattr(django_settings, name) for name in names}, prefix="DBGUARD_", **settings)
