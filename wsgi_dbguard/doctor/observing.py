"""The application after its import, described. Part of the process that imported it.

Example::

    watch = Watch(secrets.add)
    facts = observe(load("wsgi:application"), "wsgi:application", watch)
"""

from __future__ import annotations

import ast
import gc
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Mapper, Session, scoped_session, sessionmaker
from sqlalchemy.util import ScopedRegistry, ThreadLocalRegistry

from wsgi_dbguard import DBGuard, registry

from . import engines, lines, standin
from .afterfork import cuts
from .facts import AppFacts, MakerFacts, OpenedFacts, SessionFacts
from .uses import is_only_left_over
from .watching import Watch

__all__ = ["living_engines", "observe"]

_DEEPEST = 10_000  # objects that are looked at to find the guard in an application
_OF_LIBRARIES = ("sqlalchemy", "flask_sqlalchemy", "flask_sqlalchemy_lite", "wsgi_dbguard", "zope")


def observe(application: Any, target: str, watch: Watch) -> AppFacts:
    """What there is now. Objects that only wait for the garbage collector are not counted."""
    gc.collect()
    # Else one that is there, in whatever way the application leads to it.
    guard = _guard_in(application) or next(iter(registry.instances(*registry.family(DBGuard))), None)
    cls = type(application)
    return AppFacts(
        target=target,
        kind=cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}",
        guard=None if guard is None else engines.settings(guard.config),
        engines=[
            engines.describe(engine, number, watch.made_at(engine))
            for number, engine in sorted(living_engines(watch).items())
        ],
        opened=sorted(_opened(watch), key=lambda each: each.place),
        sessions=list(_shared_sessions(watch)),
        makers=[_maker(each, watch) for each in registry.instances(*registry.family(sessionmaker))],
        threads=[
            each.name
            for each in threading.enumerate()
            if each is not threading.main_thread() and not each.name.startswith("wsgi_dbguard")
        ],
        versioned=sum(each.version_id_col is not None for each in registry.instances(*registry.family(Mapper))),
        forks_noticed=_forks_noticed(watch),
        stale_at=_lines_with("StaleDataError"),
    )


def living_engines(watch: Watch) -> dict[int, Engine]:
    """The engines by number; of an engine and its copies, the first one."""
    found: dict[int, Engine] = {}
    for engine in list(registry.engines):
        found.setdefault(watch.number(engine), engine)
    return found


def _forks_noticed(watch: Watch) -> str:
    # Python, and so os.register_at_fork, is not told of uWSGI's forks.
    hooks = standin.forked() if "uwsgi" in sys.modules else watch.at_fork
    return "cut" if any(cuts(each) for each in hooks) else "hook" if hooks else ""


def _opened(watch: Watch) -> Iterator[OpenedFacts]:
    for link in list(registry.links):
        if not link.in_memory:
            number, place = watch.opened(link.entry())
            yield OpenedFacts(engine=number, place=place or link.opened_at, in_use=link.in_use)


def _guard_in(application: Any) -> DBGuard | None:
    """The `DBGuard` that the application is or leads to, by its attributes, closures and bound methods."""
    queue: list[Any] = [application]
    seen: set[int] = set()
    while queue and len(seen) < _DEEPEST:
        each = queue.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, DBGuard):
            return each
        queue += [inner for inner in _parts(each) if callable(inner) and not isinstance(inner, type)]
    return None


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield getattr(thing, "__wrapped__", None)
    elif isinstance(thing, MethodType):
        yield thing.__self__
        yield thing.__func__
    elif isinstance(thing, partial):
        yield thing.func
        yield from thing.args
    else:
        yield from list(getattr(thing, "__dict__", {}).values())


def _shared_sessions(watch: Watch) -> Iterator[SessionFacts]:
    """Sessions that outlived the import and that no scoped_session keeps for one thread or one scope."""
    scoped = {id(each) for each in _scoped()}
    for session in registry.instances(*registry.family(Session)):
        if id(session) not in scoped and not watch.belongs_to_a_thread(session):
            yield SessionFacts(
                made_at=watch.made_at(session),
                name=_name(session),
                in_transaction=session.in_transaction(),
                left_over=watch.was_closed(session) and not session.in_transaction() and is_only_left_over(session),
            )


def _scoped() -> Iterator[Session]:
    for each in registry.instances(*registry.family(scoped_session)):
        scopes: Any = each.registry
        if isinstance(scopes, ThreadLocalRegistry):
            if scopes.has():
                yield scopes()
        elif isinstance(scopes, ScopedRegistry):
            yield from scopes.registry.values()


def _name(thing: object) -> str:
    """``module.variable`` where a module's variable refers to it."""
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is thing:
                return f"{module_name}.{name}"
    return ""


def _maker(maker: sessionmaker[Any], watch: Watch) -> MakerFacts:
    cls = maker.class_.__bases__[0]  # what it was given: it makes a class of its own below that
    binds = next((each for each in maker.class_.__mro__ if "get_bind" in vars(each)), Session)
    return MakerFacts(
        made_at=watch.made_at(maker),
        class_name=f"{cls.__module__}.{cls.__qualname__}",
        splits=binds.__module__.partition(".")[0] not in _OF_LIBRARIES,
        routed=any(each.__module__.startswith("wsgi_dbguard.routing") for each in maker.class_.__mro__),
        expires=bool(maker.kw.get("expire_on_commit", True)),
    )


def _first_line(source: str, word: str) -> int | None:
    found = [
        each.lineno
        for each in ast.walk(ast.parse(source))
        if (isinstance(each, ast.Name) and each.id == word)
        or (isinstance(each, ast.Attribute) and each.attr == word)
        or (isinstance(each, ast.ImportFrom) and any(name.name == word for name in each.names))
    ]
    return min(found, default=None)


def _lines_with(word: str) -> list[str]:
    """The first line with this name, not in a comment, in each of the application's own source files."""
    found = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        top = getattr(module, "__name__", "").partition(".")[0]
        if not file.endswith(".py") or not lines.is_the_applications(top, file):
            continue
        try:
            source = Path(file).read_text(encoding="utf-8", errors="replace")
            number = _first_line(source, word) if word in source else None
        except (OSError, SyntaxError, ValueError):
            continue
        if number is not None:
            found.append(f"{lines.shown(file)}:{number}")
    return sorted(found)
