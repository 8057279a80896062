"""What a request failed with, where no exception comes through the middleware: frameworks make a 500 of it themselves.

Two sources, which tell two things:

* Of what the database did SQLAlchemy's events tell, in every framework; `pool` listens to most of them, here is the one
  for a stale update, which meets no database error. Without more, a 500 after such a failure is taken for its work.
* With what exception the request ended only the framework knows. Flask and Django send a signal with it; Pyramid, where
  an exception view made the response, leaves it with the request that its NewResponse event brings. This decides: an
  application that got over a database failure and then stumbled over something of its own keeps its 500. It is also the
  only way to learn of a pool that was exhausted.

Applications that catch everything themselves (Flask's ``errorhandler(Exception)``, Django's ``process_exception``) are
in the first case.

No framework is imported here: those that are there already are connected, when a `DBGuard` is made and at each 500 of
which nobody told, since an application may be loaded by its first request. All this is public in the frameworks; the
Pyramid applications of the process are those of ``pyramid.config.global_registries``.
"""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from .causes import failure_behind
from .failures import Failure
from .request import current

__all__ = ["connect"]

_watching = False


def connect() -> None:
    """Listen to what is there. At the second call, to what has come since."""
    global _watching
    if not _watching:
        _watching = True
        event.listen(Session, "after_soft_rollback", _on_rollback)
    for module in ("flask.signals", "django.core.signals"):
        signal = getattr(sys.modules.get(module), "got_request_exception", None)
        if signal is not None:
            signal.connect(_on_exception)  # the same receiver once more is nothing new to either
    if "pyramid.config" in sys.modules:
        _connect_pyramid(sys.modules["pyramid.config"], sys.modules["pyramid.interfaces"])


def _connect_pyramid(config: Any, interfaces: Any) -> None:
    """Of every application that there is, by its registry."""
    for registry in config.global_registries:
        if not any(each.handler is _on_pyramids_response for each in registry.registeredHandlers()):
            registry.registerHandler(_on_pyramids_response, (interfaces.INewResponse,))


def _on_rollback(session: Session, *ignored: Any) -> None:
    # A flush that fails rolls back while its error is on the way.
    if isinstance(sys.exception(), StaleDataError):
        request = current.get()
        if request is not None:
            request.database_failed(Failure.STALE, committing=False)


def _on_exception(sender: Any, *, exception: BaseException | None = None, **ignored: Any) -> None:
    # Django's signal brings no exception, but is sent while it is being handled.
    _blame(exception or sys.exception())


def _on_pyramids_response(response: Any) -> None:
    _blame(response.request.exception)


def _blame(error: BaseException | None) -> None:
    request = current.get()
    if request is not None and error is not None:
        request.swallowed(failure_behind(error, request.database_failure))
