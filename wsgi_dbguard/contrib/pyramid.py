"""Pyramid: the guard around the application, with settings in its ini file.

A tween runs inside of Pyramid: it sees no response that is being streamed and cannot run a request again. So the guard
has to stand around the WSGI application, and that is done where it is made. Either in code::

    from wsgi_dbguard.contrib.pyramid import make_wsgi_app

    def main(global_config, **settings):
        with Configurator(settings=settings) as config:
            ...
            return make_wsgi_app(config)            # in the place of config.make_wsgi_app()

or in the ini file, without a change in the code, by a PasteDeploy filter::

    [app:main]
    use = egg:shop
    filter-with = dbguard
    dbguard.hold = 10

    [filter:dbguard]
    paste.filter_app_factory = wsgi_dbguard.contrib.pyramid:filter_app_factory

Settings are those of `GuardConfig` with the prefix ``dbguard.`` among the application's own; in the filter's section
they stand without it, and win.

``config.include("wsgi_dbguard.contrib.pyramid")`` (or ``pyramid.includes``) is for applications that are wrapped
elsewhere: it refuses wrong settings when the application is configured, guards the pools of all SQLAlchemy engines from
then on, in scripts and ``pshell`` too, and logs a warning if a request comes that no `DBGuard` has seen.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wsgi_dbguard.exchange import REQUEST
from wsgi_dbguard.guards import guard_all
from wsgi_dbguard.middleware import DBGuard

from . import settings as keys

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["filter_app_factory", "includeme", "make_wsgi_app"]

logger = logging.getLogger(__name__)

PREFIX = "dbguard."


def make_wsgi_app(config: Any, *, render: WSGIApplication | None = None, **settings: Any) -> DBGuard:
    """The guarded application of a Configurator. `settings` win over those of the Configurator.

    Raises:
        SettingError: (a ValueError) for an unknown or impossible setting.
    """
    checked = keys.load(config.registry.settings, prefix=PREFIX, **settings)
    return DBGuard(config.make_wsgi_app(), config=checked, render=render)


def filter_app_factory(app: WSGIApplication, global_conf: Mapping[str, str] | None, **local_conf: str) -> DBGuard:
    """For PasteDeploy's ``paste.filter_app_factory``; `app` may be any WSGI application. Raises as `make_wsgi_app`."""
    settings = keys.read(local_conf, prefix="")
    return DBGuard(app, config=keys.load(_settings_of(app), prefix=PREFIX, **settings))


def _settings_of(app: WSGIApplication) -> Mapping[str, Any]:
    registry: Any = getattr(app, "registry", None)
    pyramid = sys.modules.get("pyramid.config")
    if registry is None and pyramid is not None:
        # Something stands between (a pipeline). PasteDeploy makes the application just before it makes its filters.
        registry = pyramid.global_registries.last
    return getattr(registry, "settings", None) or {}


def includeme(config: Any) -> None:
    """For ``config.include``. Raises as `make_wsgi_app`."""
    guard_all(keys.load(config.registry.settings, prefix=PREFIX))
    config.add_subscriber(_Unguarded(), "pyramid.events.NewRequest")


class _Unguarded:
    """Tells once that requests come past the guard."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, event: Any) -> None:
        if REQUEST not in event.request.environ and not self._told:
            self._told = True
            logger.warning(
                "Requests are not guarded, only pools are: no DBGuard stands around this Pyramid application. Return "
                "wsgi_dbguard.contrib.pyramid.make_wsgi_app(config) where it is made, or use the PasteDeploy filter."
            )
