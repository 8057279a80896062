"""What servers tell of how far they are."""

from __future__ import annotations

from sqlalchemy import create_engine

from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.replication import PostgreSQLPair
from wsgi_dbguard.routing.positions import Lsn, covers
from wsgi_dbguard.routing.servers import applied, written


def test_a_standby_tells_its_timeline_to_those_without_privileges_too(pair: PostgreSQLPair) -> None:
    pair.primary.query("DROP ROLE IF EXISTS plain")
    pair.primary.query("CREATE ROLE plain LOGIN")
    pair.caught_up()
    primary, replica = (
        create_engine(each.url().replace("dbguard@", "plain@", 1)) for each in (pair.primary, pair.replica)
    )
    position, mark = written(primary, 30.0), applied(replica, 30.0)
    assert isinstance(position, Lsn)
    assert isinstance(mark, Lsn)
    assert position.timeline == mark.timeline == 1
    assert not mark.strays(position)
    for engine in (primary, replica):
        engine.dispose()


def test_a_standby_that_has_caught_up_covers_its_primary(pair: PostgreSQLPair) -> None:
    primary, replica = create_engine(pair.primary.url()), create_engine(pair.replica.url())
    position = written(primary, 30.0)
    # Soon: what the primary's background has written is in its position before it is flushed, and sent.
    wait_until(lambda: covers(applied(replica, 30.0), position), timeout=30.0, what=f"{position} on the replica")
    for engine in (primary, replica):
        engine.dispose()
