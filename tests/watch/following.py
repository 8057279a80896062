"""Following a watch from round to round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.watch import Beat, Trouble, Way

Step = tuple[Callable[[Sequence[Beat]], bool], Callable[[], object]]
PATIENT = 30.0  # seconds that a beat may take: the servers are well, however busy the machine
LONGEST = 120.0  # seconds of a watch whose steps are not done; they take a few


def beat_of(beats: Sequence[Beat], way: Way) -> Beat:
    return next(beat for beat in beats if beat.way is way)


def all_well(beats: Sequence[Beat]) -> bool:
    return all(beat.trouble is None for beat in beats)


def all_held(beats: Sequence[Beat]) -> bool:
    """All is well, over connections that were there before."""
    return all_well(beats) and beat_of(beats, Way.KEPT).held and beat_of(beats, Way.POOL).held


def fresh_is(*troubles: Trouble) -> Callable[[Sequence[Beat]], bool]:
    return lambda beats: beat_of(beats, Way.FRESH).trouble in troubles


def tables(server: PostgreSQL | MariaDB) -> list[str]:
    rows = server.query("select table_name from information_schema.tables where table_name like 'dbguard_watch_%%'")
    return [name for (name,) in rows]


def nothing() -> None:
    """What a last step does."""
