"""Where in the program something happened: one line of it, or the whole stack, taken cheaply and written out later.

Nothing here keeps a frame: a frame keeps its variables, a connection for one.

Example::

    taken = stack()             # a few µs: no source line is read yet
    print("taken at", render(taken))
"""

from __future__ import annotations

import linecache
import sys
from types import FrameType

__all__ = ["Trace", "place", "render", "stack"]

Frame = tuple[str, int, str]  # file, line, function
Trace = tuple[Frame, ...]  # the innermost one last, as in a traceback
_OURS = (__package__, "sqlalchemy", "flask_sqlalchemy", "django", "contextlib", "threading")
_DEEPEST = 100  # frames; of a deeper stack the innermost


def place() -> Trace:
    """The innermost line of code outside SQLAlchemy and this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in _OURS:
            break
        frame = frame.f_back
    return ((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname),)


def stack() -> Trace:
    """All lines of code that led here, without this package's own innermost ones."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    frames: list[Frame] = []
    while frame is not None and len(frames) < _DEEPEST:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname))
        frame = frame.f_back
    return tuple(reversed(frames))


def render(trace: Trace) -> str:
    """As text: one line for a place, else a line for each frame and one for its source, as in a traceback."""
    if len(trace) == 1:
        ((file, number, function),) = trace
        return f"{file}:{number} in {function}"
    lines: list[str] = []
    for file, number, function in trace:
        lines.append(f'  File "{file}", line {number}, in {function}')
        if source := linecache.getline(file, number).strip():
            lines.append(f"    {source}")
    return "\n".join(lines)
