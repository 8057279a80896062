"""What ``manage.py check`` says of the guard. See `wsgi_dbguard.contrib.django` for the ids."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from wsgi_dbguard import registry
from wsgi_dbguard.errors import SettingError
from wsgi_dbguard.middleware import DBGuard

from . import configuration

__all__ = ["check_databases", "check_settings", "check_wsgi_application"]


def check_settings(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """E001: what `get_wsgi_application` would refuse."""
    try:
        configuration()
    except SettingError as error:
        return [Error(str(error), hint="Correct it in settings.py or in the environment.", id="dbguard.E001")]
    return []


def check_databases(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """W002 and W003, of Django's own databases."""
    found: list[CheckMessage] = []
    for alias, database in settings.DATABASES.items():
        kept = database.get("CONN_MAX_AGE", 0) != 0 and not str(database.get("ENGINE", "")).endswith("sqlite3")
        if kept and not database.get("CONN_HEALTH_CHECKS", False):
            found.append(
                Warning(
                    f"DATABASES[{alias!r}] keeps connections over requests (CONN_MAX_AGE) and never checks them: one "
                    "that died since then fails a request. The guard checks SQLAlchemy's connections, not Django's.",
                    hint='Set "CONN_HEALTH_CHECKS": True.',
                    id="dbguard.W002",
                )
            )
        if database.get("OPTIONS", {}).get("pool"):
            found.append(
                Warning(
                    f"DATABASES[{alias!r}] has a pool of psycopg's: a forked worker is not cut off from connections "
                    "that such a pool of its parent has opened.",
                    hint="Let each worker load the application for itself (gunicorn: preload_app = False).",
                    id="dbguard.W003",
                )
            )
    return found


def check_wsgi_application(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """W001; for ``--deploy`` only, since it imports the WSGI application."""
    path = settings.WSGI_APPLICATION
    if not path:
        return []
    try:
        import_string(path)
    except SettingError:  # E001 tells it
        return []
    except Exception as error:
        return [
            Warning(
                f"WSGI_APPLICATION = {path!r} cannot be imported, so nobody knows whether it is guarded: {error!r}",
                id="dbguard.W001",
            )
        ]
    if registry.instances(*registry.family(DBGuard)):
        return []
    return [
        Warning(
            f"WSGI_APPLICATION = {path!r} is not guarded: there is no DBGuard in this process after its import.",
            hint="Import get_wsgi_application from wsgi_dbguard.contrib.django in wsgi.py.",
            id="dbguard.W001",
        )
    ]
