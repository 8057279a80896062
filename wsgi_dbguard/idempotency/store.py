"""The rows of the keys: short transactions of their own, beside the application's.

None of them waits for a lock for long: a row that an application's transaction has locked is one that is being applied
at this very moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Insert,
    Row,
    Update,
    bindparam,
    delete,
    exists,
    false,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from wsgi_dbguard import failures
from wsgi_dbguard.answers import Problem
from wsgi_dbguard.failures import Failure
from wsgi_dbguard.request import Request, current

from .claims import active
from .marker import Marker
from .problems import APPLIED, CARRIED_OUT, MISMATCH, RUNNING
from .table import clock, make_table

__all__ = ["Released", "Store", "Stored", "Unreachable"]

T = TypeVar("T")

_TRIES = 5  # of a transaction that lost its connection or against another one
_LOCKED_FOR = 5.0  # seconds to wait for a COMMIT whose reply was lost, and that is still being carried out
_PAUSE = 0.02  # seconds between two looks
# In the place of a lease, when a request is over; both are long past. Of one that died its lease stays there.
_WELL, _FAILED = 0.0, 1.0
_PASSING = frozenset({Failure.DISCONNECT, Failure.SERIALIZATION, Failure.DEADLOCK, Failure.READ_ONLY})


class Unreachable(Exception):
    """The database did not answer, or not in time."""


class Released(Enum):
    """What became of a claim that was to be given up."""

    FREE = "free"  # it is gone, and nothing was applied: whatever is still under way cannot be committed any more
    APPLIED = "applied"
    LOST = "lost"  # it is somebody else's


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer that was given to the first request."""

    head: bytes
    body: bytes


class Store:
    """The keys in `table` of `engine`; a claim may be taken over `lease` seconds after it was made."""

    def __init__(self, engine: Engine, table: str, lease: float) -> None:
        self.engine = engine
        self.lease = lease
        self._keys = make_table(table)
        self._now = clock(engine.dialect.name)
        self._postgresql = engine.dialect.name == "postgresql"
        columns = self._keys.c
        over = (columns.expires <= self._now).label("over")
        well = (columns.expires == _WELL).label("well")
        row = select(columns.owner, columns.fingerprint, columns.applied, columns.head, columns.body, over, well)
        # Optimization: made once. To make one costs as much as to send it.
        self._look = row.where(columns.id == bindparam("key"))
        self._insert_values = self._insertion()
        mine = update(self._keys).where(columns.id == bindparam("key"), columns.owner == bindparam("by"))
        self.mark = Marker(engine, mine)
        self.mark_unmarked = Marker(engine, mine.where(columns.applied == false()))
        self._over = mine.values(expires=bindparam("ended", type_=columns.expires.type))
        self._answered = mine.values(expires=_WELL, head=bindparam("answer_head"), body=bindparam("answer_body"))

    def _insertion(self) -> Insert:
        keys = self._keys
        names = {"id": "key", "owner": "by", "fingerprint": "print"}
        values: dict[str, Any] = {name: bindparam(given, type_=keys.c[name].type) for name, given in names.items()}
        values |= {"created": self._now, "expires": self._now + self.lease}
        if not self._postgresql:
            return insert(keys).values(values)
        # An INSERT would wait for a transaction that has the row locked. A SELECT does not.
        there = exists(select(literal_column("1")).where(keys.c.id == bindparam("key")))
        return insert(keys).from_select(list(values), select(*values.values()).where(~there))

    def claim(self, key: str, fingerprint: str, owner: str, former: str | None = None) -> Problem | Stored | None:
        """Have `key` for `owner`. None: it has; else what there is to tell instead.

        `former` is an owner that has been given up, whose claim may be taken before its lease is over.

        Raises:
            Unreachable: if the database cannot be reached.
            sqlalchemy.exc.DBAPIError: if it refuses, such as without the table.
        """
        for _ in range(_TRIES):
            row = self._repeat(lambda: self._insert(key, fingerprint, owner))
            if row is True:
                return None
            if row is False:
                continue  # it was there, and then it was not
            if row is None:
                break  # and not once more: that was a long time
            if row.owner == owner:  # its own INSERT, whose reply was lost
                return None
            given_up = row.owner == former
            if (told := _tell(row, fingerprint, over=row.over or given_up)) is not None:
                return told
            if self._repeat(lambda seen=row.owner, now=given_up: self._take_over(key, seen, owner, now)):  # type: ignore[misc]
                return None
        return RUNNING  # or it changes faster than it can be looked at

    def look(self, key: str, fingerprint: str) -> Problem | Stored | None:
        """What there is to tell of `key`; None: it is free.

        Raises:
            Unreachable: if the database cannot be reached.
        """
        row = self._repeat(lambda: self._alone(lambda connection: self._row(connection, key)))
        return None if row is None else _tell(row, fingerprint, over=row.over)

    def finish(self, key: str, owner: str, answer: Stored | None, *, well: bool) -> None:
        """The request is over; with its `answer`, or without one that could be kept. `well`: it came to its end.

        Raises:
            Unreachable: if the database cannot be reached.
        """
        statement: Update = self._over
        given: dict[str, Any] = {"key": key, "by": owner}
        if answer is not None:
            statement = self._answered
            given |= {"answer_head": answer.head, "answer_body": answer.body}
        else:
            given["ended"] = _WELL if well else _FAILED
        self._repeat(lambda: self._alone(lambda connection: connection.execute(statement, given)))

    def release(self, key: str, owner: str) -> Released:
        """Give the claim up, unless it was applied: nothing of what `owner` has still under way can be committed then.

        Raises:
            Unreachable: if the database cannot be reached, or the row stays locked.
        """
        until = time.monotonic() + _LOCKED_FOR
        while True:
            found = self._repeat(lambda: self._release(key, owner))
            if found is not None:
                return found
            if time.monotonic() > until:
                raise Unreachable("the row is locked")
            time.sleep(_PAUSE)

    def _insert(self, key: str, fingerprint: str, owner: str) -> bool | Row[Any] | None:
        """True: inserted; False: look again; None: in MySQL, it has waited for another one's; else the row."""
        given = {"key": key, "by": owner, "print": fingerprint}

        def postgresql(connection: Connection) -> bool | Row[Any]:
            return connection.execute(self._insert_values, given).rowcount == 1 or self._row(connection, key) or False

        def mysql(connection: Connection) -> bool | Row[Any]:
            # Here a SELECT inside of the INSERT would wait as well.
            row = self._row(connection, key)
            if row is None:
                connection.execute(self._insert_values, given)
            return row or True

        try:
            return self._alone(postgresql if self._postgresql else mysql)
        except IntegrityError:
            return False
        except DBAPIError as error:
            if failures.classify(error) is Failure.LOCK_TIMEOUT:
                return None
            raise

    def _row(self, connection: Connection, key: str) -> Row[Any] | None:
        return connection.execute(self._look, {"key": key}).one_or_none()

    def _take_over(self, key: str, seen: str, owner: str, given_up: bool) -> bool:
        keys = self._keys
        dead = (keys.c.id == key, keys.c.owner == seen, keys.c.applied == false(), keys.c.head.is_(None))
        take = update(keys).where(*dead)
        if not given_up:
            take = take.where(keys.c.expires <= self._now)

        def transaction(connection: Connection) -> bool:
            connection.execute(select(keys.c.id).where(keys.c.id == key).with_for_update(nowait=True))
            return connection.execute(take.values(owner=owner, expires=self._now + self.lease)).rowcount == 1

        return self._locking(transaction) or False

    def _release(self, key: str, owner: str) -> Released | None:
        keys = self._keys

        def transaction(connection: Connection) -> Released:
            row = connection.execute(
                select(keys.c.owner, keys.c.applied).where(keys.c.id == key).with_for_update(nowait=True)
            ).one_or_none()
            if row is None or row.owner != owner:
                return Released.LOST
            if row.applied:
                return Released.APPLIED
            connection.execute(delete(keys).where(keys.c.id == key))
            return Released.FREE

        return self._locking(transaction)

    def _locking(self, transaction: Callable[[Connection], T]) -> T | None:
        """What `transaction` returns; None: the row is locked."""
        try:
            with self.engine.begin() as connection:
                return transaction(connection)
        except DBAPIError as error:
            if failures.classify(error) is Failure.LOCK_TIMEOUT:
                return None
            raise

    def _alone(self, act: Callable[[Connection], T]) -> T:
        if self._postgresql:
            with self.engine.connect() as connection:
                return _in_autocommit(connection, act)
        if self._reads_lock:
            with self.engine.connect() as connection:
                return act(connection.execution_options(isolation_level="AUTOCOMMIT"))
        with self.engine.begin() as connection:
            return act(connection)

    @cached_property
    def _reads_lock(self) -> bool:
        """Whether MySQL or MariaDB makes each SELECT of a transaction a SELECT … LOCK IN SHARE MODE.

        In autocommit it does not, see "InnoDB Transaction Isolation Levels".
        """
        with self.engine.connect() as connection:
            return connection.get_isolation_level() == "SERIALIZABLE"

    def _repeat(self, act: Callable[[], T]) -> T:
        """What `act` returns, which may be done twice.

        Raises:
            Unreachable: if the database cannot be reached.
        """
        with _apart() as limited:
            for tries in range(1, _TRIES + 1):
                try:
                    return act()
                except Exception as error:
                    if limited is not None and limited.expired:
                        raise Unreachable(str(error)) from error
                    failure = failures.classify(error)
                    connecting = failures.classify(error, connecting=True) is Failure.UNAVAILABLE
                    if (failure in _PASSING and tries < _TRIES) or (connecting and tries < 2):
                        continue
                    if failure is Failure.OTHER and not connecting:
                        raise
                    raise Unreachable(str(error)) from error
        raise AssertionError("not reached")


def _tell(row: Row[Any], fingerprint: str, *, over: bool) -> Problem | Stored | None:
    """What a request that finds `row` is told; None: its owner is dead, and has applied nothing.

    `over`: the owner has ended, or its lease has.
    """
    if row.fingerprint != fingerprint:
        return MISMATCH
    if row.head is not None:
        return Stored(row.head, row.body)
    if not over:
        return RUNNING
    if not row.applied:
        return None
    return CARRIED_OUT if row.well else APPLIED


def _in_autocommit(connection: Connection, act: Callable[[Connection], T]) -> T:
    """What `act` returns, each of its statements a transaction of its own: one round trip instead of three.

    PostgreSQL's drivers only note the mode; those of MySQL ask the server for it. SQLAlchemy's isolation level
    AUTOCOMMIT costs a round trip to put back with psycopg2.
    """
    connection.rollback()  # what a listener may have begun
    driver: Any = connection.connection.dbapi_connection
    before = driver.autocommit
    driver.autocommit = True
    try:
        return act(connection)
    finally:
        if not connection.invalidated:
            driver.autocommit = before


@contextmanager
def _apart() -> Iterator[Request | None]:
    """What is done in here is no deed of the request's.

    Where the guard has a deadline, that is to hold all the same: then there is one for this alone, also after a request
    that has spent its own. It is yielded.
    """
    request = current.get()
    limits = [] if request is None else [each.limit for each in request.chain() if each.limit is not None]
    own = None
    if limits:
        own = Request({})
        own.limit = min(limits)
    tokens = active.set(None), current.set(own)
    try:
        yield own
    finally:
        active.reset(tokens[0])
        current.reset(tokens[1])
