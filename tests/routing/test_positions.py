from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_dbguard.routing.positions import Lsn, MariaDBGtids, MySQLGtids, Position, covers, parse

BLOCK, SEGMENT = 8192, 16 << 20
UUIDS = ["3e11fa47-71ca-11e1-9e33-c80aa9429562", "4f22fa47-71ca-11e1-9e33-c80aa9429562:tag"]

lsns = st.builds(Lsn, st.integers(0, 2**64 - 1), st.integers(0, 3))
numbers = st.integers(1, 2**64 - 1)
mariadb = st.dictionaries(
    st.tuples(st.integers(0, 2), st.integers(1, 3)), numbers, min_size=1, max_size=4
).map(MariaDBGtids)  # fmt: skip
intervals = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 5)).map(lambda each: (each[0], sum(each))), min_size=1
)
mysql = st.dictionaries(st.sampled_from(UUIDS), intervals, min_size=1).map(MySQLGtids)
two = st.one_of(st.tuples(lsns, lsns), st.tuples(mariadb, mariadb), st.tuples(mysql, mysql))


@given(two)
def test_a_join_covers_both_and_no_more(both: tuple[Position, Position]) -> None:
    one, other = both
    joined = one.join(other)
    assert covers(joined, one)
    assert covers(joined, other)
    assert covers(one, joined) == covers(one, other)


@given(two)
def test_what_is_written_is_what_is_read(both: tuple[Position, Position]) -> None:
    for each in both:
        again = parse(str(each))
        assert type(again) is type(each)
        assert covers(again, each)
        assert covers(each, again)


@given(st.text())
def test_no_position_is_a_value_error(text: str) -> None:
    with suppress(ValueError):
        parse(text)


def test_positions_of_two_kinds_have_nothing_to_do_with_each_other() -> None:
    assert not covers(Lsn(5), MariaDBGtids({(0, 1): 5}))


@pytest.mark.parametrize(
    ("text", "rounded"),
    [
        ("0/3000028", "0/3000000"),  # behind the header of a segment, 40 bytes
        ("0/3000018", "0/3000018"),  # no such place: that header is longer
        ("0/3002018", "0/3002000"),  # behind the header of a page, 24 bytes
        ("0/3002028", "0/3002028"),  # the end of a record that began on the page before
        ("0/3002020", "0/3002020"),
        ("0/3000048", "0/3000048"),
        ("7/FF000028", "7/FF000000"),
        ("0/3001FF8", "0/3001FF8"),
    ],
)
def test_lsn_behind_a_header_is_rounded_down(text: str, rounded: str) -> None:
    assert str(Lsn.inserted(text, BLOCK, SEGMENT)) == rounded


def test_another_timeline_is_another_history() -> None:
    written = Lsn.parse("0/5000000/2")
    old = Lsn.parse("0/6000000/1")  # more of the old primary than the new one has
    assert not covers(old, written)
    assert old.strays(Lsn.parse("0/4000000/2"))
    assert old.strays(Lsn.parse("0/7000000/2"))
    following = Lsn.parse("0/5000028/2")
    assert covers(following, written)
    assert covers(following, Lsn.parse("0/4000000/1"))  # written at the old primary
    assert covers(following, Lsn.parse("0/5000028"))  # a token of an older version
    assert not following.strays(Lsn.parse("0/5000000/2"))
    assert str(Lsn.inserted("0/3002018/0000001A", BLOCK, SEGMENT)) == "0/3002000/1A"


def test_mariadb_goes_by_the_sequence_of_each_domain_and_server() -> None:
    position = MariaDBGtids.parse("0-1-10,2-5-3")
    assert covers(MariaDBGtids.parse("0-1-11,2-5-3"), position)
    assert not covers(MariaDBGtids.parse("0-1-11"), position)
    assert not covers(MariaDBGtids.parse("0-1-9,2-5-3"), position)
    assert not covers(MariaDBGtids.parse("0-2-11,2-5-3"), position)  # of another primary: it may never have had this


def test_a_mariadb_replica_knows_what_former_primaries_wrote_from_its_log() -> None:
    replica = MariaDBGtids.applied("0-2-12,2-5-3", "0-1-10,0-2-14,0-3-13,2-5-3,1-1-1")
    assert str(replica) == "0-1-10,0-2-12,2-5-3"  # not what is in the log but is not to be seen yet
    assert covers(replica, MariaDBGtids.parse("0-1-10"))
    assert str(MariaDBGtids.applied("0-2-12", "")) == "0-2-12"


@pytest.mark.parametrize(
    ("replica", "strays"),
    [
        ("0-1-10", False),
        ("0-1-9,0-2-11,1-3-5", False),  # of a domain that the primary does not know
        ("0-2-12", False),
        ("0-2-13", True),
        ("0-1-13", True),
        ("0-1-12", True),  # the same number, but another transaction
    ],
)
def test_a_mariadb_replica_that_has_what_the_primary_has_not_strays(replica: str, strays: bool) -> None:
    assert MariaDBGtids.parse(replica).strays(MariaDBGtids.parse("0-2-12")) is strays


def test_a_mysql_replica_that_has_what_the_primary_has_not_strays() -> None:
    primary = MySQLGtids.parse(f"{UUIDS[0]}:1-5")
    assert not MySQLGtids.parse(f"{UUIDS[0]}:1-4").strays(primary)
    assert MySQLGtids.parse(f"{UUIDS[0]}:1-6").strays(primary)
    assert not MySQLGtids.parse(f"{UUIDS[0]}:1-5,{UUIDS[1]}:1").strays(primary)  # somebody's own, at the replica


def test_mysql_goes_by_sets() -> None:
    uuid = UUIDS[0]
    whole = MySQLGtids.parse(f"{uuid.upper()}:1-5:7,\n{UUIDS[1]}:1")
    assert covers(whole, MySQLGtids.parse(f"{uuid}:2-4:7"))
    assert not covers(whole, MySQLGtids.parse(f"{uuid}:5-7"))
    assert str(whole.join(MySQLGtids.parse(f"{uuid}:6"))) == f"{uuid}:1-7,{UUIDS[1]}:1-1"
