"""The guard by URL alone: ``create_engine(url, plugins=["dbguard"])`` or ``postgresql://…?plugin=dbguard``.

Settings come as arguments with the prefix ``dbguard_``: ``create_engine(…, dbguard_ping_after=30.0)`` or
``…?plugin=dbguard&dbguard_ping_after=30``. For scripts, Celery tasks and applications whose engine is made by somebody
else; a web application has `DBGuard`, which does this and the requests.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, CreateEnginePlugin, Engine

from .config import GuardConfig, parse
from .guards import guard

__all__ = ["DBGuardPlugin"]

PREFIX = "dbguard_"


class DBGuardPlugin(CreateEnginePlugin):
    """SQLAlchemy loads it by the name ``dbguard``.

    Raises:
        SettingError: (a ValueError) for an unknown or impossible setting.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        self._settings: dict[str, Any] = {}
        for key, text in url.query.items():
            if key.startswith(PREFIX):
                name = key.removeprefix(PREFIX)
                self._settings[name] = parse(name, text if isinstance(text, str) else ",".join(text), source=key)
        for key in [key for key in kwargs if key.startswith(PREFIX)]:
            self._settings[key.removeprefix(PREFIX)] = kwargs.pop(key)
        GuardConfig.load(self._settings)  # refused here, before an engine exists

    def update_url(self, url: URL) -> URL:
        return url.difference_update_query([key for key in url.query if key.startswith(PREFIX)])

    def engine_created(self, engine: Engine) -> None:
        guard(engine, **self._settings)
