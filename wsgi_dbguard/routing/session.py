"""`RoutingSession`: the Session that asks where to go; `primary`: saying it by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from weakref import ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import FromStatement, ORMExecuteState, Session
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ColumnClause, TextClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import ForUpdateArg, TextualSelect

from wsgi_dbguard.request import Request, current
from wsgi_dbguard.transactions import only_reads

from .replicas import group_of

__all__ = ["OPTION", "RoutingSession", "primary"]

OPTION = "dbguard_primary"
_CACHED_LENGTH = 4096  # characters: longer texts are not worth their memory

_by_hand: ContextVar[bool] = ContextVar("wsgi_dbguard.routing.primary", default=False)
# They write, or lock what a replica's lock does not protect.
_FUNCTIONS = (
    r"nextval|next_value|setval|set_config|pg_notify|pg_(?:try_)?advisory\w+|txid_current|pg_current_xact_id|lo_\w+|dblink\w*"
    r"|get_lock|release_lock|release_all_locks"
)
_FUNCTION = re.compile(_FUNCTIONS, re.IGNORECASE)
_LOCKS = re.compile(
    rf"\b(?:{_FUNCTIONS})\s*\(|\bfor\s+(?:no\s+key\s+|key\s+)?(?:update|share)\b|\block\s+in\s+share\b|\bnext\s+value\b",
    re.IGNORECASE,
)


@contextmanager
def primary() -> Iterator[None]:
    """In this block, and in a function that it decorates, sessions have the primary.

    A session that was used in it stays there until the request ends: what it has loaded may not be on a replica yet. ::

    with primary():
        stock = session.scalar(select(Item.stock))
    """
    before = _by_hand.set(True)
    try:
        yield
    finally:
        _by_hand.reset(before)


class RoutingSession(Session):
    """A Session whose reads go to a replica where `Replicas` says so; for ``sessionmaker(engine, class_=…)``.

    It is bound as ever: where its `get_bind` comes to a primary, a replica may be used instead. A class of your own
    that has a `get_bind` belongs behind it: ``class MySession(RoutingSession, BaseSession)``. For Flask-SQLAlchemy
    ``SQLAlchemy(session_options={"class_": RoutingSession})`` is enough.

    The execution option ``dbguard_primary=True`` sends one statement to the primary, and what the session reads after
    it in the same request. A two-phase session has nothing but the primary.
    """

    _stays: ref[Request] | None = None  # with the primary, in this request

    def __new__(cls, *args: Any, **keywords: Any) -> RoutingSession:
        # Flask-SQLAlchemy gives its sessions the extension. They are a class of its own, with a get_bind.
        return super().__new__(_for_flask(cls) if "db" in keywords else cls)

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **keywords: Any
    ) -> Engine | Connection:
        by_hand = keywords.pop(OPTION, False)
        found = super().get_bind(mapper=mapper, clause=clause, bind=bind, **keywords)
        request = current.get()
        if request is None or bind is not None:
            return found
        group = group_of(found)
        if group is None:
            return found
        assert isinstance(found, Engine)
        if self.twophase:  # a standby refuses to prepare
            return found
        if by_hand or _by_hand.get() or _asks_for_primary(clause):
            self._stays = ref(request)
            return found
        # Without a clause it is a flush, or the user's: Session.connection().
        if request.safe and (clause is None or writes(clause)):
            group.write(request, "wrote")
            return found
        if self._stays is not None and self._stays() is request:
            return found
        return group.choose(request, found)


def _asks_for_primary(clause: Any) -> bool:
    options = getattr(clause, "get_execution_options", None)
    return options is not None and bool(options().get(OPTION, False))


def writes(clause: Any) -> bool:
    """Whether a statement gives a sign of writing, or of locking: when in doubt, yes."""
    if isinstance(clause, TextClause):
        return _text_writes(clause.text)
    return any(_is_sign(each) for each in visitors.iterate(clause))


def _text_writes(text: str) -> bool:
    return _judged(text) if len(text) <= _CACHED_LENGTH else _judged.__wrapped__(text)


@lru_cache(maxsize=512)
def _judged(text: str) -> bool:
    return not only_reads(text) or _LOCKS.search(text) is not None


def _is_sign(element: Any) -> bool:
    if getattr(element, "is_dml", False) or isinstance(element, ForUpdateArg):
        return True
    if isinstance(element, FunctionElement):
        return _FUNCTION.fullmatch(getattr(element, "name", "")) is not None
    if isinstance(element, TextualSelect | FromStatement):  # text that is a whole statement
        whole: Any = element.element
        return isinstance(whole, TextClause) and _text_writes(whole.text)
    if isinstance(element, TextClause):  # a part of a statement
        return _LOCKS.search(element.text) is not None
    if isinstance(element, ColumnClause) and element.is_literal:
        return _LOCKS.search(element.name) is not None
    return False


@event.listens_for(RoutingSession, "do_orm_execute", propagate=True)
def _on_execute(state: ORMExecuteState) -> None:
    if state.execution_options.get(OPTION, False):
        state.bind_arguments[OPTION] = True


_flask_classes: dict[type[RoutingSession], type[RoutingSession]] = {}


def _for_flask(cls: type[RoutingSession]) -> type[RoutingSession]:
    if cls not in _flask_classes:
        from flask_sqlalchemy.session import Session as FlaskSession

        ready = issubclass(cls, FlaskSession)
        _flask_classes[cls] = cls if ready else type(cls.__name__, (cls, FlaskSession), {})
    return _flask_classes[cls]
