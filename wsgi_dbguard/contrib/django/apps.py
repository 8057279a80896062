"""The Django application ``wsgi_dbguard.contrib.django``: it has system checks, and nothing else."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from . import connections
from .checks import check_databases, check_settings, check_wsgi_application

__all__ = ["DBGuardConfig"]


class DBGuardConfig(AppConfig):  # type: ignore[misc]
    name = "wsgi_dbguard.contrib.django"
    label = "dbguard"
    verbose_name = "Database guard"

    def ready(self) -> None:
        connections.watch()
        checks.register(check_settings, "dbguard")
        checks.register(check_databases, "dbguard")
        checks.register(check_wsgi_application, "dbguard", deploy=True)
