"""The lab's replicas: what they show, and when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.replication import PostgreSQLPair, Standby

pytestmark = pytest.mark.slow


@pytest.fixture
def pair() -> Iterator[PostgreSQLPair]:
    try:
        pair = PostgreSQLPair()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with pair:
        yield pair


def test_a_replica_that_was_away_while_another_was_copied_catches_up(pair: PostgreSQLPair) -> None:
    pair.replica.stop()
    # The copy begins with a checkpoint, which removes what nobody is known to need.
    with Standby(pair.primary):
        pair.primary.query("create table written_while_it_was_away (n int)")
        pair.replica.start()
        pair.caught_up()
        assert pair.replica.query("select count(*) from written_while_it_was_away") == [(0,)]
