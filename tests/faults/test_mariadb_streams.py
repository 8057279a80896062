"""mariadb's connection ends in the middle of an unbuffered result: an error, never fewer rows.

The other drivers of MariaDB say so themselves; PostgreSQL's server-side cursors ask for rows by statements, which fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, exc, text

from wsgi_dbguard import sockets
from wsgi_dbguard.lab.inherited import STREAM
from wsgi_dbguard.lab.peers import Peer
from wsgi_dbguard.lab.server import NAME

PEERS = QUICK = ["mariadb"]
READS: dict[str, Callable[[Any], int]] = {
    "all": lambda result: len(result.fetchall()),
    "many": lambda result: sum(map(len, iter(lambda: result.fetchmany(7), []))),
    "one": lambda result: sum(1 for _ in iter(result.fetchone, None)),
}


def test_the_driver_itself_takes_it_for_the_end_of_the_rows(peer: Peer) -> None:
    """Why it is mended: when this fails, `quirks.mend_streams` has nothing to do any more."""
    import mariadb

    connection = mariadb.connect(host=peer.server.host, port=peer.server.port, user=NAME, database=NAME)
    cursor = connection.cursor(buffered=False)
    cursor.execute(peer.sql.numbers)
    cursor.fetchone()
    sockets.cut(sockets.fileno(connection))
    assert len(cursor.fetchall()) < 999
    cursor.close()
    connection.close()


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_result_that_was_cut_ends_with_a_disconnect(read: Callable[[Any], int], peer: Peer) -> None:
    engine = create_engine(peer.url())
    with engine.connect() as connection:
        result = connection.execute(text(peer.sql.numbers), execution_options=STREAM)
        assert result.fetchone() is not None
        sockets.cut(sockets.fileno(connection.connection.dbapi_connection))
        with pytest.raises(exc.DBAPIError) as caught:
            read(result)
        assert caught.value.connection_invalidated
    engine.dispose()


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_whole_result_is_whole(read: Callable[[Any], int], peer: Peer) -> None:
    engine = create_engine(peer.url())
    with engine.connect() as connection:
        for _ in range(2):
            assert read(connection.execute(text(peer.sql.numbers), execution_options=STREAM)) == 1000
    engine.dispose()
