"""The line of the application that did something: outside of what is installed, where there is such a line.

An application that is itself installed is known by its package, which `belongs_to` is told.

Example::

    lines.belongs_to("shop.wsgi:application")
    lines.here()                                    # "shop.py:7 in <module>"
"""

from __future__ import annotations

import os
import sys
import sysconfig
from types import FrameType

from wsgi_dbguard import stacks

__all__ = ["belongs_to", "here", "is_the_applications", "shown"]

# The longest first: one may be below another.
_INSTALLED = tuple(
    os.path.join(path, "")
    for path in sorted({sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")}, key=len)[::-1]
)
_application = ""


def belongs_to(target: str) -> None:
    """From now on the top package of this TARGET counts as the application's, though it be installed."""
    global _application
    _application = target.partition(":")[0].partition(".")[0]


def here() -> str:
    """The innermost line of the application itself, else of what is neither SQLAlchemy nor this package."""
    installed: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = _package(frame)
        if package != "wsgi_dbguard" and not _is_installed(frame.f_code.co_filename):
            return _rendered(frame)
        if installed is None and package == _application:
            installed = frame
        frame = frame.f_back
    if installed is not None:
        return _rendered(installed)
    ((file, line, function),) = stacks.place()
    return stacks.render(((shown(file), line, function),))


def is_the_applications(package: str, file: str) -> bool:
    """Whether a module of this top package is neither the standard library's nor another installed package's."""
    return package != "wsgi_dbguard" and (package == _application or not _is_installed(file))


def shown(file: str) -> str:
    """The path, from the working directory or from where packages are installed, if it is below one of them."""
    below = os.path.relpath(file)
    if not below.startswith(os.pardir):
        return below
    return next((file.removeprefix(each) for each in _INSTALLED if file.startswith(each)), file)


def _is_installed(file: str) -> bool:
    return file.startswith(("<", *_INSTALLED))


def _package(frame: FrameType) -> str:
    # Of what runs as __main__ only __package__ tells.
    known = frame.f_globals.get("__package__") or frame.f_globals.get("__name__") or ""
    return str(known).partition(".")[0]


def _rendered(frame: FrameType) -> str:
    return stacks.render(((shown(frame.f_code.co_filename), frame.f_lineno, frame.f_code.co_qualname),))
