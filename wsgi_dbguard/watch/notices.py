"""What PostgreSQL says beside its answers. Its goodbye in a crash is a notice: no driver makes an error of it.

Example::

    heard = notices_of(connection)      # grows as the server talks
    if crash(heard): ...
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

__all__ = ["CRASH", "crash", "notices_of"]

CRASH = "terminating connection because of crash of another server process"
_CODE = "57P02"  # crash_shutdown; psycopg2 gives the words only


def notices_of(connection: Any) -> Collection[object]:
    """Those of a driver's connection, from now on; none of a driver that tells none."""
    heard: Collection[object] | None = getattr(connection, "notices", None)  # psycopg2, pg8000
    if heard is None and hasattr(connection, "add_notice_handler"):  # psycopg
        noted: list[object] = []
        connection.add_notice_handler(lambda notice: noted.append((notice.sqlstate, notice.message_primary)))
        return noted
    return () if heard is None else heard


def crash(heard: Collection[object]) -> bool:
    """Whether the server ended the connection since another one of its processes had crashed."""
    return any(CRASH in str(each) or _CODE in str(each) for each in list(heard))
