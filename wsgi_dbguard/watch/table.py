"""The table that the beats go into: one of its own for each watch, so that several do not meet."""

from __future__ import annotations

import secrets

from sqlalchemy import Column, Integer, MetaData, String, Table, func
from sqlalchemy.types import DateTime

__all__ = ["PREFIX", "make_table"]

PREFIX = "dbguard_watch_"


def make_table() -> Table:
    """The description of a table that is not there yet."""
    return Table(
        PREFIX + secrets.token_hex(4),
        MetaData(),
        Column("beat", Integer, primary_key=True, autoincrement=False),
        Column("way", String(8), primary_key=True),
        Column("at", DateTime(timezone=True), server_default=func.current_timestamp()),
    )
