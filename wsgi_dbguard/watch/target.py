"""The database that is watched: its URL, checked, and engines for it; passwords are taken out of all that is told.

Example::

    target = Target.parse("postgresql+psycopg2://app:secret@db.example/app")
    target.shown                # "postgresql+psycopg2://app:***@db.example/app"
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from wsgi_dbguard.doctor.secrets import Secrets, is_secret

__all__ = ["CannotWatch", "Target"]

DIALECTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_LONGEST = 300  # characters of an error's line
_PLUGIN = "dbguard"
_ADVICE = re.compile(r"(This probably means the server|Is the server running).*", re.DOTALL)  # libpq's, to everybody


class CannotWatch(Exception):
    """There is nothing to watch; the message says why, and has no password."""


@dataclass(frozen=True)
class Target:
    """Where the beats go. Made by `parse`."""

    url: URL
    secrets: Secrets

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises CannotWatch for what is no URL of a PostgreSQL, MySQL or MariaDB server."""
        try:
            url = make_url(text)
            dialect = url.get_backend_name()
            url.get_dialect()
        except NoSuchModuleError:
            names = ", ".join(f"{each}+driver://" for each in DIALECTS)
            raise CannotWatch(f"SQLAlchemy knows no such database or driver; a URL begins with {names}") from None
        except (ArgumentError, ValueError):  # their messages have what was given, with its password
            form = "postgresql+psycopg2://user:password@host:5432/database"
            raise CannotWatch(f"this is no SQLAlchemy URL; one looks like {form}, with % for @ : / in a password"
                              " (%40 %3A %2F)") from None  # fmt: skip
        if dialect not in DIALECTS:
            raise CannotWatch(f"watch is for servers: PostgreSQL, MySQL and MariaDB, not for {dialect}")
        secrets = Secrets(os.environ)
        if url.password:
            secrets.add(url.password)
        for name, value in url.query.items():
            if is_secret(name):
                secrets.add(*([value] if isinstance(value, str) else value))
        return cls(url, secrets)

    @property
    def shown(self) -> str:
        """The URL for people."""
        return self.secrets.hide(self.url.render_as_string(hide_password=True))

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port, where the URL says them: not for a Unix socket, nor for several hosts."""
        if not self.url.host or "host" in self.url.query:
            return None
        return self.url.host, self.url.port or DIALECTS[self.url.get_backend_name()]

    def engine(self, *, guarded: bool = False, **options: Any) -> Engine:
        """An engine in autocommit, so that a beat is one statement; without the guard's plugin unless `guarded`.

        Raises CannotWatch when the driver is missing or does not take what the URL says.
        """
        url = self.url if guarded else _unguarded(self.url)
        try:
            engine = create_engine(url, isolation_level="AUTOCOMMIT", **options)
        except ModuleNotFoundError as missing:
            raise CannotWatch(f"the driver is not installed: no module {missing.name}") from None
        except (ArgumentError, NoSuchModuleError, TypeError, ValueError) as error:
            raise CannotWatch(self.line(error)) from None
        if engine.dialect.is_async:
            raise CannotWatch(f"{engine.dialect.driver} is an async driver; take another one of this database")
        return engine

    def line(self, error: BaseException) -> str:
        """What an error says, in one line and without passwords."""
        text = str(getattr(error, "orig", None) or error) or type(error).__name__
        text = self.secrets.hide(" ".join(_ADVICE.sub("", text).split()))
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _unguarded(url: URL) -> URL:
    plugins = url.query.get("plugin", ())
    others = [each for each in ([plugins] if isinstance(plugins, str) else plugins) if each != _PLUGIN]
    url = url.difference_update_query([key for key in url.query if key == "plugin" or key.startswith(f"{_PLUGIN}_")])
    return url.update_query_dict({"plugin": others}) if others else url
