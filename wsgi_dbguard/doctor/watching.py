"""What can only be seen while it happens: which line makes engines, connections and sessions; passwords on their way.

For the process that imports the application for `doctor`, and for nothing else: it puts itself into the constructors of
`Session` and `sessionmaker`, for which SQLAlchemy has no event.

Example::

    watch = Watch(tell_secret=secrets.add)
    import shop
    watch.made_at(shop.session)         # "shop.py:7 in <module>"
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from wsgi_dbguard import registry

from . import lines
from .secrets import in_variable, is_secret, passwords_in

__all__ = ["Watch"]

_KEY = "wsgi_dbguard.doctor"  # in ConnectionPoolEntry.info


class Watch:
    """From now on, in this process. `tell_secret` is called with passwords, as soon as they are known."""

    def __init__(self, tell_secret: Callable[..., object]) -> None:
        self._tell_secret = tell_secret
        # By id(): who is asked for is alive, and so the last one that was noted under it.
        self._places: dict[int, str] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._numbers: dict[Dialect, int] = {}  # an engine's copies share its dialect, and its number
        # Whoever sets a variable: the server's configuration, or a .env that is loaded at import.
        sys.addaudithook(self._on_event)
        self.at_fork: list[Callable[..., Any]] = []  # given to os.register_at_fork by the application
        self._watch_forks()
        registry.on_engine(self._on_engine)
        event.listen(Engine, "do_connect", self._on_connecting)
        for cls in (Session, sessionmaker):
            self._watch_class(cls)
        self._closed: set[int] = set()
        self._watch_closing()

    def made_at(self, thing: object) -> str:
        """The line that made an engine, a Session or a sessionmaker; "" where it is not known."""
        return self._places.get(id(thing), "")

    def number(self, engine: Engine) -> int:
        """An engine's number: 0 for the first one that was made. The same for its copies."""
        return self._numbers.setdefault(engine.dialect, len(self._numbers))

    def opened(self, entry: ConnectionPoolEntry | None) -> tuple[int | None, str]:
        """The number of the engine that opened a pooled connection, and the line; None and "" where not known."""
        known: tuple[int, str] | None = None if entry is None else entry.info.get(_KEY)
        return known or (None, "")

    def belongs_to_a_thread(self, session: Session) -> bool:
        """Whether it was made by a thread of the application's own that still runs: not shared, as far as is known."""
        thread = self._threads.get(id(session))
        return thread is not None and thread is not threading.main_thread() and thread.is_alive()

    def was_closed(self, session: Session) -> bool:
        """Whether it was closed at some time."""
        return id(session) in self._closed

    def _watch_closing(self) -> None:
        original = Session.close

        def close(session: Session) -> None:
            self._closed.add(id(session))
            original(session)

        cls: Any = Session
        cls.close = close

    def _note(self, thing: object) -> None:
        self._places[id(thing)] = lines.here()
        self._closed.discard(id(thing))  # another one was there before
        self._threads[id(thing)] = threading.current_thread()

    def _on_engine(self, engine: Engine) -> None:
        self._note(engine)
        event.listen(engine, "connect", partial(self._on_connected, self.number(engine)))
        self._tell_secret(engine.url.password or "")
        for name, value in engine.url.query.items():
            for each in [value] if isinstance(value, str) else value:
                self._tell_argument(name, each)

    def _on_connecting(self, dialect: Dialect, entry: Any, args: Any, keywords: dict[str, Any]) -> None:
        for name, value in [*(("", each) for each in args), *keywords.items()]:
            if value and isinstance(value, str | bytes):
                self._tell_argument(name, value)

    def _tell_argument(self, name: str, value: str | bytes) -> None:
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        self._tell_secret(*([text] if is_secret(name) else passwords_in(text)))

    def _on_event(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "os.putenv":
            self._tell_secret(*in_variable(os.fsdecode(args[0]), os.fsdecode(args[1])))

    def _on_connected(self, number: int, connection: Any, entry: ConnectionPoolEntry) -> None:
        entry.info[_KEY] = (number, lines.here())

    def _watch_forks(self) -> None:
        original: Any = os.register_at_fork

        def register(**keywords: Any) -> None:
            caller = sys._getframe(1)
            package = str(caller.f_globals.get("__name__", "")).partition(".")[0]
            if "after_in_child" in keywords and lines.is_the_applications(package, caller.f_code.co_filename):
                self.at_fork.append(keywords["after_in_child"])
            original(**keywords)

        os.register_at_fork = register

    def _watch_class(self, cls: Any) -> None:
        original = cls.__init__
        watch = self

        def init(self: Any, *args: Any, **keywords: Any) -> None:
            watch._note(self)
            original(self, *args, **keywords)

        cls.__init__ = init
