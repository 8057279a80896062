"""Settings of a session that requests change and leave: put back for the next user, by SQL.

One can be put back only if it is known what it was. So the first time that a request leaves a setting, its connection
is replaced; from then on new connections of that pool are asked for it before their first use, in one round trip, and a
request that leaves it costs one more at the next checkout. Nothing is asked inside the application's own transactions.
What a ``connect`` listener of the user's set is what it was; so is the server's default.

What has no value to put back (locks of the session, temporary tables, LISTEN, prepared statements) costs the connection
(``replaced: changed``), unless the request undid it. One with a lock that others may wait for is closed when the
request ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.engine.interfaces import Dialect

from .changes import DATABASE, TRANSACTION_NAMES
from .link import Link
from .patterns import lazily
from .statements import ANYTHING
from .watchdog import Deadline

__all__ = ["Variables"]

logger = logging.getLogger(__name__)
_MOST = 32  # one that is named for each user, say, is not worth asking for


class Variables:
    """The settings that requests leave on the connections of one pool.

    `names` are those that new connections are asked for, `restored` is how often a connection got them back.
    """

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self.restored = 0

    def expect(self, link: Link) -> None:
        """Have a new connection asked at its first checkout."""
        if self.names:
            link.changed = set()

    def learn(self, dialect: Dialect, connection: Any, link: Link, timeout: float) -> None:
        """Ask a new connection; in vain: its settings are not known then. After `timeout` seconds its socket is cut."""
        link.changed = None
        wanted = sorted(self.names)
        try:
            with Deadline(timeout, link.cut), _autocommit(dialect, connection):
                cursor = connection.cursor()
                link.values = (_postgresql_values if dialect.name == "postgresql" else _mysql_values)(cursor, wanted)
                cursor.close()
            if dialect.name != "postgresql":
                connection.rollback()
        except Exception as error:
            logger.debug("could not ask for the values of %s: %s", wanted, error)

    def restore(self, dialect: Dialect, connection: Any, link: Link, timeout: float) -> bool:
        """Put back what was changed; False if that is not possible: the connection must not be used any more then."""
        changed, link.changed = link.changed, None
        link.pending.clear()
        if not changed:  # nobody has asked it: it was used before it had a guard
            return True
        if not changed <= link.values.keys() or (DATABASE in changed and link.values[DATABASE] is None):
            names = self.names | {each for each in changed if _is_variable(each)}
            self.names = names if len(names) <= _MOST else frozenset()
            return False
        values = {key: link.values[key] for key in sorted(changed)}
        deadline = Deadline(timeout, link.cut)
        try:
            with deadline, _autocommit(dialect, connection):
                cursor = connection.cursor()
                (_restore_postgresql if dialect.name == "postgresql" else _restore_mysql)(cursor, values)
                cursor.close()
        except Exception as error:
            logger.debug("could not put back %s: %s", ", ".join(changed), error)
            return False
        self.restored += 1
        return not deadline.expired


def _is_variable(key: str) -> bool:
    return key != ANYTHING and " " not in key


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


_NUMBER = lazily(r"-?\d+(\.\d+)?")


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
