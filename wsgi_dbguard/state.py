"""What requests leave on a pooled connection by SQL: settings are put back, anything else costs the connection.

A setting can be put back only if it is known what it was. So the first time that a request leaves a setting, its
connection is replaced; from then on new connections of that pool are asked for it before their first use, in one round
trip, and a request that leaves it costs one more at the next checkout. Nothing is asked inside the application's own
transactions. What a ``connect`` listener of the user's set is what it was; so is the server's default.

In PostgreSQL a rollback undoes a SET: a request that only reads costs nothing then. Locks of the session, temporary
tables, LISTEN, prepared statements: the connection is replaced (``replaced: changed``), unless the request undid it.
One with a lock that others may wait for is closed when the request ends.

Only statements that SQLAlchemy sends in a request are seen, not those of ``raw_connection()``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import Dialect

from .changes import ANYTHING, COMMIT, DATABASE, TRANSACTION_NAMES, Change, changes
from .link import KEY, Link
from .request import Request
from .watchdog import Deadline

__all__ = ["committed", "is_variable", "keeps_a_lock", "learn", "note", "restore", "rolled_back"]

logger = logging.getLogger(__name__)
_MISSING = object()


def is_variable(key: str) -> bool:
    """Whether the change of that key can be put back."""
    return key != ANYTHING and " " not in key


def keeps_a_lock(link: Link) -> bool:
    """Whether it holds others up, also while it lies in the pool."""
    return any(each.startswith(("lock ", "tables ")) for each in link.changed or ())


# While a request runs


def note(connection: Connection, statement: str, parameters: Any, request: Request) -> None:
    """`statement`, for which `changes.touches`, is about to be sent."""
    link = _link(connection)
    if link is None or link.guard is None:
        return
    transaction: bool | None = None
    for each in changes(statement, parameters, connection.dialect.name):
        if each.key == COMMIT:
            committed(connection)
            continue
        change = each
        if change.reset and change.key != ANYTHING and link.values.get(change.key, _MISSING) is None:
            change = Change(change.key, undo=True, transactional=True)
        if change.transactional and transaction is None:
            transaction = _in_transaction(connection)
        if change.transactional and transaction:
            request.changes = True
            link.pending.pop(change.key, None)  # the order counts
            link.pending[change.key] = not change.undo
        else:
            _apply(link, change.key, not change.undo)


def committed(connection: Connection) -> None:
    """What was changed in its transaction stays."""
    link = _link(connection)
    if link is not None:
        for key, changed in link.pending.items():
            _apply(link, key, changed)
        link.pending.clear()


def rolled_back(connection: Connection) -> None:
    """What was changed in its transaction is as it was."""
    link = _link(connection)
    if link is not None:
        link.pending.clear()


def _link(connection: Connection) -> Link | None:
    if connection.closed or connection.invalidated:  # asked for its connection it would open another one
        return None
    link: Link | None = connection.info.get(KEY)
    return link


def _in_transaction(connection: Connection) -> bool:
    dbapi_connection = connection.connection.dbapi_connection
    try:
        return dbapi_connection is not None and not connection.dialect.detect_autocommit_setting(dbapi_connection)
    except NotImplementedError:
        return False


def _apply(link: Link, key: str, changed: bool) -> None:
    left = set(link.changed or ())
    if changed:
        left.add(key)
    else:
        undone = {
            each for each in (*left, *link.pending) if each == key or (key[-2:] == " *" and each.startswith(key[:-1]))
        }
        left -= undone
    link.changed = left or None


# At a checkout


def learn(dialect: Dialect, connection: Any, link: Link, names: Iterable[str], timeout: float) -> None:
    """Ask a new connection for the values of these variables; in vain: they are not known then. At most `timeout` s."""
    link.changed = None
    wanted = sorted(names)
    try:
        with Deadline(timeout, link.cut), _autocommit(dialect, connection):
            cursor = connection.cursor()
            link.values = (_postgresql_values if dialect.name == "postgresql" else _mysql_values)(cursor, wanted)
            cursor.close()
        if dialect.name != "postgresql":
            connection.rollback()
    except Exception as error:
        logger.debug("could not ask for the values of %s: %s", wanted, error)


def restore(dialect: Dialect, connection: Any, link: Link, timeout: float) -> bool:
    """Put back what was changed; False if that is not possible: then the connection must not be used any more."""
    changed, link.changed = link.changed or set(), None
    link.pending.clear()
    if not changed <= link.values.keys() or (DATABASE in changed and link.values[DATABASE] is None):
        return False
    values = {key: link.values[key] for key in sorted(changed)}
    deadline = Deadline(timeout, link.cut)
    try:
        with deadline, _autocommit(dialect, connection):
            cursor = connection.cursor()
            (_restore_postgresql if dialect.name == "postgresql" else _restore_mysql)(cursor, values)
            cursor.close()
    except Exception as error:
        logger.debug("could not put back %s: %s", ", ".join(values), error)
        return False
    return not deadline.expired


@contextmanager
def _autocommit(dialect: Dialect, connection: Any) -> Iterator[None]:
    """A SET that is not committed would not last, and BEGIN and COMMIT are round trips. MySQL has no such need."""
    if dialect.name != "postgresql" or connection.autocommit:
        yield
        return
    connection.autocommit = True
    try:
        yield
    finally:
        connection.autocommit = False


# One whose value comes from the session was set by a listener of the user's; any other is reset (null). Those that the
# view does not show (role, and variables of the application's own) are taken as they are.
_POSTGRESQL_VALUE = (
    "case when (select source from pg_catalog.pg_settings where lower(name) = %s) <> 'session' then null"
    " else pg_catalog.current_setting(%s, true) end"
)


def _postgresql_values(cursor: Any, names: list[str]) -> dict[str, Any]:
    cursor.execute(f"select {', '.join([_POSTGRESQL_VALUE] * len(names))}", [name for name in names for _ in range(2)])
    return dict(zip(names, cursor.fetchone(), strict=True))


def _restore_postgresql(cursor: Any, values: dict[str, Any]) -> None:
    names = sorted(values, key=lambda name: name != "role")  # another role may not be allowed the rest
    calls = ", ".join(["pg_catalog.set_config(%s, %s, false)"] * len(names))
    cursor.execute(f"select {calls}", [each for name in names for each in (name, values[name])])
    cursor.fetchone()


_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def _mysql_values(cursor: Any, names: list[str]) -> dict[str, Any]:
    """Names that the server does not know are left out."""
    own = [name for name in names if name.startswith("@")]
    cursor.execute(f"select {', '.join([DATABASE, *(f'@`{name[1:]}`' for name in own)])}")
    found: dict[str, Any] = dict(zip([DATABASE, *own], cursor.fetchone(), strict=True))
    system = [f"'{name}'" for name in names if name.isidentifier()]
    system += [f"'{other}'" for other, name in TRANSACTION_NAMES.items() if name in names]  # what MySQL 8 calls it
    if system:
        cursor.execute(f"show session variables where variable_name in ({', '.join(system)})")
        for name, told in cursor.fetchall():
            found[TRANSACTION_NAMES.get(name.lower(), name.lower())] = _mysql_value(told)
    return found


def _mysql_value(text: str) -> Any:
    """SHOW tells all as text, SET takes numbers as numbers only."""
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    return text


def _restore_mysql(cursor: Any, values: dict[str, Any]) -> None:
    if (database := values.pop(DATABASE, None)) is not None:
        cursor.execute(f"use `{database.replace('`', '``')}`")
    if (level := values.pop("tx_isolation", None)) is not None:
        cursor.execute(f"set session transaction isolation level {level.replace('-', ' ')}")
    if (read_only := values.pop("tx_read_only", None)) is not None:
        cursor.execute(f"set session transaction read {'only' if read_only == 'ON' else 'write'}")
    if values:
        targets = (f"@`{name[1:]}`" if name.startswith("@") else f"@@session.{name}" for name in values)
        cursor.execute(f"set {', '.join(f'{target} = %s' for target in targets)}", tuple(values.values()))
