"""A failover as it happens: of two replicas one is promoted, and the other one follows it, or cannot any more.

The primary is killed under load. What it had not sent to the replica that takes its place is lost, as ever where
replication is asynchronous; what is written from then on is read again, and nothing that the new primary never had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from threading import Event, Thread

import pytest
from sqlalchemy import create_engine

from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.replication import PATIENCE, PostgreSQLPair, Standby

from .conftest import Site

pytestmark = pytest.mark.slow

LEAD = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 4 << 20), true)"  # more than all that comes after


class Three(PostgreSQLPair):
    """A primary, the replica that is promoted, and another one."""

    other: Standby

    def _start(self, stack: ExitStack) -> None:
        super()._start(stack)
        self.other = stack.enter_context(Standby(self.primary, settings=self._settings))

    @property
    def url(self) -> str:
        """Of the primary, whichever it is."""
        hosts = "&".join(f"host={each.host}:{each.port}" for each in (self.primary, self.replica))
        return f"postgresql+psycopg2://dbguard@/dbguard?{hosts}&target_session_attrs=read-write"


class Client:
    """Writes and reads by turns, and keeps its cookie."""

    def __init__(self, site: Site, number: int, phase: Callable[[], str]) -> None:
        self.site = site
        self.number = number
        self.phase = phase
        self.turns = {"before": 0, "after": 0, "": 0}
        self.stale: list[str] = []
        self.read: set[str] = set()  # after the failover
        self.cookie = ""
        self.end = Event()
        self.thread = Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.end.is_set():
            phase = self.phase()
            name = f"{self.number}-{sum(self.turns.values())}"
            answer = self.site.ask(partial(self.site.add, name), "POST", HTTP_COOKIE=self.cookie)
            if "Set-Cookie" in answer.headers:
                self.cookie = answer.cookie
            if answer.status == "200 OK":
                found = self.site.ask(self.site.names, HTTP_COOKIE=self.cookie)
                if phase == self.phase() and phase and found.status == "200 OK":
                    if name not in found.body.split():
                        self.stale.append(f"{phase} {name}")
                    if phase == "after":
                        self.read.update(found.body.split())
            self.turns[phase] += 1


@pytest.fixture
def three() -> Iterator[Three]:
    try:
        three = Three()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with three:
        yield three


@pytest.fixture
def site(three: Three, make_site: Callable[..., Site]) -> Iterator[Site]:
    other = create_engine(three.other.url())
    yield make_site(three, url=three.url, more=[other], guard={"hold": 60.0}, check_every=0.2, out_for=0.2).ready()
    other.dispose()


def usable(site: Site) -> list[bool]:
    return [bool(each["usable"]) for each in site.replicas.stats()["replicas"].values()]


@pytest.mark.parametrize("promoted", ["ahead", "behind"])
def test_after_a_failover_nothing_is_stale_and_nothing_is_wrong(site: Site, three: Three, promoted: str) -> None:
    wait_until(lambda: site.ask(site.where).body and usable(site) == [True, True], timeout=60.0, what="both replicas")
    phase = "before"
    clients = [Client(site, number, lambda: phase) for number in range(3)]
    try:
        turns(clients, "before", 10)
        phase = ""
        (three.other if promoted == "ahead" else three.replica).follow(None)
        three.primary.query("INSERT INTO items (name) VALUES ('lost')")
        three.primary.query(LEAD)
        caught_up(three, three.replica if promoted == "ahead" else three.other)
        three.primary.kill()
        three.replica.promote()
        three.other.follow(three.replica)
        phase = "after"
        turns(clients, "after", 30)
    finally:
        for each in clients:
            each.end.set()
        for each in clients:
            each.thread.join()
    assert [each.stale for each in clients] == [[], [], []]
    there = {name for (name,) in three.replica.query("SELECT name FROM items")}
    assert ("lost" in there) == (promoted == "ahead")
    assert set().union(*(each.read for each in clients)) <= there
    if promoted == "ahead":
        site.ready()  # by the one that follows
        assert usable(site) == [False, True]
    else:
        assert three.other.query("SELECT count(*) FROM items WHERE name = 'lost'") == [(1,)]
        is_left_alone(site)


def turns(clients: list[Client], phase: str, least: int) -> None:
    wait_until(lambda: min(each.turns[phase] for each in clients) >= least, timeout=120.0, what=f"turns {phase}")


def caught_up(three: Three, standby: Standby) -> None:
    ((position,),) = three.primary.query("SELECT pg_current_wal_flush_lsn()::text")
    done = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
    wait_until(lambda: standby.query(done, position)[0][0], timeout=PATIENCE, what=f"{position} on {standby!r}")


def is_left_alone(site: Site) -> None:
    """The diverged one, by clients without a token too, on an idle primary, however often it is looked at."""
    site.ask(site.where)
    _, other = site.replicas.replicas
    before = other.probes
    until = time.monotonic() + 60.0
    while other.probes < before + 3:
        assert "lost" not in site.ask(site.names).body.split()
        assert usable(site) == [False, False]
        assert time.monotonic() < until
