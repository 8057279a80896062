"""The statement that marks a row as applied, in the application's transaction, just before its COMMIT.

It goes to the driver as it is, not through SQLAlchemy: that is quicker, and the application's own listeners and options
have no part in it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

from sqlalchemy import Engine, Update, func, true
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import PoolProxiedConnection

from wsgi_dbguard import failures

__all__ = ["ClaimUnseen", "Marker"]

_NUMBER = func.txid_current_if_assigned()  # PostgreSQL: None in a transaction that has not written
_ASK_NUMBER = "SELECT txid_current_if_assigned(), current_setting('transaction_isolation')"
# What is said to the mark of a transaction whose COMMIT makes nothing last: MariaDB and MySQL in one that is READ ONLY;
# PostgreSQL after a statement that failed, in_failed_sql_transaction, where COMMIT is a ROLLBACK and no error.
_NOTHING_LASTS = frozenset({1792, "25P02"})


class ClaimUnseen(OperationalError):
    """The transaction's snapshot is older than the claim of its key, or the key was given to another request.

    It was rolled back: a serialization failure, as PostgreSQL has it. What runs before `Idempotent`, such as
    `principal`, has to end its transaction in REPEATABLE READ and SERIALIZABLE.
    """


class _TooOld(RuntimeError):
    sqlstate = "40001"  # serialization_failure

    def __init__(self) -> None:
        super().__init__(
            "the transaction's snapshot does not show the claim of its Idempotency-Key: what runs before Idempotent, "
            "such as principal, has to end its transaction (REPEATABLE READ, SERIALIZABLE)"
        )


class Marker:
    """Called with a connection, a key and its owner. `mine`: an UPDATE of the row of `key` and `by`."""

    def __init__(self, engine: Engine, mine: Update) -> None:
        self._engine = engine
        self._postgresql = engine.dialect.name == "postgresql"
        self._update = mine.values(applied=true())
        if self._postgresql:
            self._update = self._update.where(_NUMBER.is_not(None))

    def __call__(self, connection: PoolProxiedConnection, key: str, owner: str) -> bool | None:
        """Mark the row as applied in the transaction of `connection`. False: it is not the row of `owner` any more.

        None: the database says that nothing of the transaction will last, so there is nothing to mark.

        Raises:
            ClaimUnseen: the transaction's snapshot does not show a row of `owner`.
            Exception: the driver's. The transaction is neither committed nor rolled back then.
        """
        if self._only_reads(connection):
            return None
        text, names = self._compiled
        given = {"key": key, "by": owner}
        cursor = connection.cursor()
        try:
            cursor.execute(text, given if names is None else [given[name] for name in names])
            if cursor.rowcount == 1:
                return True
            if not self._postgresql:
                return False
            cursor.execute(_ASK_NUMBER)
            number, isolation = cursor.fetchone() or (None, "")
            if number is None:
                return None
            if str(isolation).startswith("read "):
                return False
            raise ClaimUnseen(None, None, _TooOld())
        except Exception as error:
            if failures.code_of(error) not in _NOTHING_LASTS:
                raise
            return None
        finally:
            with suppress(Exception):  # of a connection that is lost
                cursor.close()

    def _only_reads(self, connection: PoolProxiedConnection) -> bool:
        """Whether it has the option `postgresql_readonly`: it would refuse the mark, and has written nothing."""
        get_readonly = getattr(self._engine.dialect, "get_readonly", None)  # PostgreSQL's dialects have it
        with suppress(NotImplementedError):
            return get_readonly is not None and get_readonly(connection.dbapi_connection) is True
        return False

    @cached_property
    def _compiled(self) -> tuple[str, list[str] | None]:
        """The text for the driver, and the names of its parameters where it wants them in order."""
        options: dict[str, Any] = {}
        # As `create_table` and the claims, which know this engine alone.
        if schemas := self._engine.get_execution_options().get("schema_translate_map"):
            options = {"schema_translate_map": schemas, "render_schema_translate": True}
        compiled: Any = self._update.compile(dialect=self._engine.dialect, **options)
        return str(compiled), list(compiled.positiontup) if compiled.positional else None
