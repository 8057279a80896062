"""A ROLLBACK that was skipped changes nothing for anybody: the next request, and others, meet what they would meet.

Two engines do the same, one of which skips. With another rule than the guard's, such as the server's own flag, there
are differences at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsgi_dbguard import rollbacks
from wsgi_dbguard.lab.drivers import DRIVERS
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.peers import Peer

from .twins import WAYS, Twin, Twins, Way, compare

PEERS = [driver.name for driver in DRIVERS if driver.database == "mariadb"]
QUICK: list[str] = []

STATEMENTS = [
    "select 1",
    "select * from inno",
    "select * from inno where a = 404",
    "select * from my",
    "select * from aria",
    "select * from inno where a = 1 for update",
    "select * from inno lock in share mode",
    "select a into @x from inno where a = 1",
    "explain select * from inno",
    "show warnings",
    "insert into inno values (10, 1)",
    "insert into inno values (1, 1)",  # a duplicate key: it fails, and leaves a transaction with a lock
    "insert into my values (10)",
    "update inno set b = b + 1 where a = 2",
    "selec nonsense",
    "savepoint s",
    "rollback to s",
    "begin",
    "commit",
    "rollback",
    "commit and chain",
    "start transaction read only",
    "start transaction with consistent snapshot",
    "set transaction read only",
    "set transaction isolation level serializable",
    "set transaction isolation level read uncommitted",
    "set session transaction isolation level read committed",
    "set session transaction read only",
    "set completion_type = 'CHAIN'",
    "set autocommit = 1",
    "set autocommit = 0",
    "set @v = 7, sql_mode = 'ANSI'",
    "use information_schema",
    "lock tables inno read",
    "lock tables inno write, my write",
    "unlock tables",
    "select get_lock('{name}', 0)",
    "handler inno open",
    "handler inno read first",
    "create temporary table tt (a int) engine=InnoDB",
    "insert into tt values (1)",
    "create or replace table made (a int) engine=InnoDB",
    "alter table my comment 'changed'",
    "prepare p from 'select * from inno'",
    "execute p",
    "call both_results()",
    "call writes()",
    "call commits()",
    "xa begin '{name}'",
    "xa end '{name}'",
    "xa rollback '{name}'",
]
DONE = ["commit", "rollback", "driver: commit", "driver: rollback"]
STEPS = [
    *STATEMENTS,
    *(f"raw: {each}" for each in STATEMENTS if each.startswith(("select", "insert", "set tr", "call"))),
    "half: select * from inno",
    "binary: select * from inno where a = ?",
    "ping",
]
ENDS = ["", *DONE]


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Twins]]:
    twins: dict[str, Twins] = {}
    yield twins
    for pair in twins.values():
        for twin in pair:
            twin.close()


@pytest.fixture
def twins(peer: Peer, made: dict[str, Twins]) -> Twins:
    """One that sends each ROLLBACK, and one that skips."""
    if peer.driver not in made:
        assert isinstance(peer.server, MariaDB)
        name = peer.driver.replace("-", "_")
        made[peer.driver] = (
            Twin(peer.server, peer.driver, f"sends_{name}", skips=False),
            Twin(peer.server, peer.driver, f"skips_{name}", skips=True),
        )
    return made[peer.driver]


@pytest.mark.parametrize("step", STEPS)
def test_after_one_step(step: str, twins: Twins) -> None:
    for end in ENDS:
        assert compare(twins, [[step, *filter(None, [end])]]) == [], end


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.lists(st.sampled_from(STEPS + DONE * 6), max_size=6), min_size=1, max_size=3),
    way=st.sampled_from(WAYS),
)
def test_after_any_steps(requests: list[list[str]], way: Way, twins: Twins) -> None:
    assert compare(twins, requests, way) == []


@pytest.mark.parametrize("way", WAYS)
def test_what_is_compared_was_skipped(way: Way, twins: Twins) -> None:
    sends, skips = twins
    assert compare(twins, [["insert into inno values (10, 1)", "commit"]] * 3, way) == []
    assert (sends.sent, skips.sent) == (3, 0)


# What each of them has to say of a transaction, as the server told it last.
FLAGS: dict[str, Callable[[Any], object]] = {
    "pymysql": lambda raw: raw.server_status & 1,
    "mariadb": lambda raw: raw.server_status & 1,
    "mysql-connector": lambda raw: raw.in_transaction,
    "mysqlclient": lambda raw: False,  # it knows, and does not tell
}


@pytest.mark.parametrize(
    "steps",
    [["insert into inno values (1, 1)"], ["set transaction read only"], ["savepoint s"]],
    ids=["a lock after an error", "of the next transaction", "a savepoint"],
)
def test_the_servers_flag_would_not_do(
    steps: list[str], peer: Peer, twins: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why it is not asked: when this fails, it may be."""
    flag = FLAGS[peer.driver]
    monkeypatch.setattr(rollbacks, "_is_needless", lambda link: not flag(link.connection()))
    assert compare(twins, [steps], purge=1.0) != []
