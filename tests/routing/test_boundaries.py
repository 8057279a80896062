"""An idle primary whose last record ends with its page, or with its segment.

The insert position that it tells lies behind the next page's header then, 24 or 40 bytes further, where replay does not
get while nothing more is written. Who wrote that record is served by the replica all the same, and at once.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.routing.positions import Lsn
from wsgi_dbguard.routing.tokens import Tokens

from .conftest import Answer, Site

TOKENS = Tokens("secret", name="db-position", lifetime=600.0)
BLOCK = 8192  # bytes, PostgreSQL's own choice
HEADER, FIRST_HEADER = 24, 40  # bytes, of a page and of a segment's first one
# Where the last record ends, from the page's end on: some places before it, it, some behind the next header.
OFFSETS = [-24, -16, -8, 0, HEADER + 8, HEADER + 16, HEADER + 24, 0]


class Walk:
    """Writes records so that the last one ends where it is to."""

    def __init__(self, site: Site) -> None:
        self.site = site
        ((size,),) = site.pair.primary.query("SELECT pg_size_bytes(current_setting('wal_segment_size'))")
        self.segment = int(size)

    @property
    def inserted(self) -> int:
        ((position,),) = self.site.pair.primary.query("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return int(position)

    def emit(self, size: int) -> None:
        self.site.pair.primary.query("SELECT pg_logical_emit_message(false, 'x', repeat('x', %s), true)", size)

    def to(self, end: Callable[[], int], offset: int) -> None:
        """Have the last record end `offset` bytes from `end`, a page's; somebody else's records make it try again."""

        def placed() -> bool:
            # What a record takes, besides its content: from two in the middle of a page.
            while BLOCK - self.inserted % BLOCK < 4000:
                self.emit(600)
            before = self.inserted
            self.emit(600)
            there, goal = self.inserted, end() + offset
            self.emit(goal - there - (there - before - 600) - (HEADER if offset > 0 else 0))
            return self.inserted == (goal if offset else goal + self.header(goal))

        wait_until(placed, timeout=60.0, what=f"a record that ends {offset} bytes from a page's end")

    def header(self, page: int) -> int:
        return HEADER if page % self.segment else FIRST_HEADER

    def page_end(self) -> int:
        return (self.inserted // BLOCK + 1) * BLOCK

    def last_page_of_segment(self) -> None:
        while self.segment - self.inserted % self.segment > 2 * BLOCK:
            self.emit(min(self.segment - self.inserted % self.segment - 2 * BLOCK, 4 << 20))

    def is_served_at_once(self) -> Lsn:
        """The one who wrote all this; returns the position that it was told."""
        site = self.site
        answer: Answer = site.ask(site.where, "POST")
        position = TOKENS.load([answer.headers["DB-Position"]]).position
        assert isinstance(position, Lsn)

        def replayed() -> bool:
            ((there,),) = site.pair.replica.query("SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn")
            return int(there) >= position.value

        wait_until(replayed, timeout=60.0, what=f"{position} on the replica")
        before = site.replicas.stats()["primary"].get("behind", 0)
        assert site.ask(site.where, HTTP_COOKIE=answer.cookie).body == "replica"
        stats = site.replicas.stats()
        assert (stats["waited"], stats["primary"].get("behind", 0)) == (0, before)
        return position


@pytest.fixture
def walk(make_site: Callable[..., Site]) -> Walk:
    # No waiting: a position that replay does not reach sends the request to the primary.
    return Walk(make_site(wait=0.0, max_lag=60.0, pin=70.0, probe_timeout=30.0).ready())


@pytest.mark.parametrize("offset", OFFSETS)
def test_at_the_end_of_a_page(walk: Walk, offset: int) -> None:
    walk.to(walk.page_end, offset)
    position = walk.is_served_at_once()
    if walk.inserted == position.value + HEADER:  # still idle
        assert (position.value % BLOCK, offset) == (0, 0)


def test_at_the_end_of_a_segment(walk: Walk) -> None:
    walk.last_page_of_segment()
    walk.to(walk.page_end, 0)
    position = walk.is_served_at_once()
    assert position.value % BLOCK == 0 or position.value != walk.inserted


def test_after_a_switch_to_the_next_segment(walk: Walk) -> None:
    for _ in range(3):
        walk.emit(100)  # without a record there is nothing to switch for
        walk.site.pair.primary.query("SELECT pg_switch_wal()")
        position = walk.is_served_at_once()
        if walk.inserted % walk.segment == FIRST_HEADER:  # still idle
            assert position.value % walk.segment == 0


def test_over_many_pages(walk: Walk) -> None:
    """With records of any length."""
    pages = set()
    for number in range(60):
        walk.emit(8 * number * 37 % 3000)
        pages.add(walk.is_served_at_once().value // BLOCK)
    assert len(pages) > 5
