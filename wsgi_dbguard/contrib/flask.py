"""Flask: the guard as an extension. ::

    from wsgi_dbguard.contrib.flask import DBGuardExtension

    app = Flask(__name__)
    app.config["DBGUARD_HOLD"] = 10.0           # any setting of `GuardConfig`, or FLASK_DBGUARD_HOLD=10 in the
    app.config.from_prefixed_env()              # environment of an application that reads that
    DBGuardExtension(app)                       # or: dbguard = DBGuardExtension(); dbguard.init_app(app)

It wraps ``app.wsgi_app``, so ``flask run`` and test clients have the guard as well. All SQLAlchemy engines of the
process are guarded, those that are made later too: it does not matter whether Flask-SQLAlchemy's ``init_app`` comes
before or after, and its binds need no mention. What is put around ``app.wsgi_app`` later (ProxyFix) stands outside of
the guard; where the guard is to be outside of something, call `init_app` after it.

``app.extensions["dbguard"]`` is the `DBGuard`, with its ``stats()``. The command ``flask dbguard doctor`` looks for
what will go wrong with the application's database connections; options as of ``wsgi-dbguard doctor``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from flask import Flask
from flask.cli import AppGroup, ScriptInfo

from wsgi_dbguard.cli.doctor import doctor
from wsgi_dbguard.errors import SettingError
from wsgi_dbguard.middleware import DBGuard

from . import settings as keys

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["DBGuardExtension", "load"]

NAME = "dbguard"  # of the extension, and of its command


class DBGuardExtension:
    """Guards Flask applications.

    Args:
        app: the application; None: `init_app` tells it later.
        render: as of `DBGuard`.
        settings: of `GuardConfig`; they win over the application's configuration.
    """

    def __init__(self, app: Flask | None = None, *, render: WSGIApplication | None = None, **settings: Any) -> None:
        self._render = render
        self._settings = settings
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Guard `app`, whose configuration is complete; at the second call with the same settings nothing happens.

        Raises:
            SettingError: (a ValueError) for an unknown or impossible setting, or other settings than `app` has already.
        """
        config = keys.load(app.config, prefix="DBGUARD_", **self._settings)
        known = app.extensions.get(NAME)
        if known is not None:
            if known.config != config:
                raise SettingError(f"{app!r} is guarded with other settings already: {known.config}")
            return
        guard = DBGuard(app.wsgi_app, config=config, render=self._render)
        app.wsgi_app = guard  # type: ignore[method-assign]
        app.extensions[NAME] = guard
        app.cli.add_command(_commands())


def load(path: str | None = None) -> Flask:
    """The application that Flask's command line finds by ``--app PATH``, or without it in wsgi.py or app.py."""
    return ScriptInfo(app_import_path=path).load_app()


def _commands() -> click.Group:
    group = AppGroup(NAME, help="Look after the application's database connections.")
    # Flask's command line has found the application; the doctor, in a process of its own, finds it by the same rules.
    group.add_command(
        click.Command(
            "doctor",
            params=[each for each in doctor.params if each.name != "target"],
            callback=_doctor,
            short_help="Look for what will go wrong with the application's database connections.",
            help="Look for what will go wrong with this application's database connections.\n\n"
            "It is imported once more, in a process of its own, and its databases are asked for their limits.\n\n"
            "Exit code 0: nothing to report, or nothing as bad as --fail-on; 1: findings; 2: could not look.",
        )
    )
    return group


def _doctor(**options: Any) -> None:
    info = click.get_current_context().find_object(ScriptInfo)
    if info is None or info.create_app is not None:
        raise click.UsageError("which application? Use `flask --app APP dbguard doctor`, or `wsgi-dbguard doctor`")
    assert doctor.callback is not None
    doctor.callback(target=f"{__name__}:load({info.app_import_path!r})", **options)
