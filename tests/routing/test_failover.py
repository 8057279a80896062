"""The replica goes away, hangs, or is promoted; or it was never to be written to: no request fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from sqlalchemy import create_engine

from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.replication import PostgreSQLPair, Standby
from wsgi_dbguard.routing.positions import Lsn

from .conftest import Site

pytestmark = pytest.mark.slow


@pytest.fixture
def own_pair() -> Iterator[PostgreSQLPair]:
    """A pair that may be broken."""
    try:
        pair = PostgreSQLPair()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with pair:
        yield pair


@pytest.fixture
def own_site(make_site: Callable[..., Site], own_pair: PostgreSQLPair) -> Site:
    return make_site(own_pair, out_for=0.5, check_every=0.2, probe_timeout=0.5).ready()


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_a_replica_that_goes_away_fails_no_request(own_site: Site, fault: str) -> None:
    getattr(own_site.pair.replica, fault)()
    answers = [own_site.ask(own_site.where) for _ in range(20)]
    assert {(answer.status, answer.body) for answer in answers} == {("200 OK", "primary")}
    own_site.pair.replica.start()
    own_site.ready()


def test_nobody_waits_for_a_replica_with_hold(make_site: Callable[..., Site], own_pair: PostgreSQLPair) -> None:
    """The setting is for a database that there is no other for."""
    site = make_site(own_pair, guard={"hold": 90.0}).ready()
    own_pair.replica.kill()
    began = time.monotonic()
    answers = [site.ask(site.where) for _ in range(3)]
    assert {(answer.status, answer.body) for answer in answers} == {("200 OK", "primary")}
    assert time.monotonic() - began < 60.0


def test_a_replica_that_hangs_is_left_alone(own_site: Site) -> None:
    written = own_site.ask(own_site.add, "POST")
    own_site.replicas.replicas[0].mark = None
    own_site.pair.replica.pause()
    try:
        # With a position to ask for: the question has a deadline, the application's own query has none.
        for _ in range(20):
            assert own_site.ask(own_site.where, HTTP_COOKIE=written.cookie).body == "primary"
    finally:
        own_site.pair.replica.resume()
    own_site.ready()


def test_a_replica_that_hangs_lets_no_question_wait_for_a_connection(own_site: Site) -> None:
    (replica,) = own_site.replicas.replicas
    own_site.replica.dispose()
    own_site.pair.replica.pause()
    try:
        began = time.monotonic()
        assert not replica.ask()
        # Half a second, in whole seconds; without it DBGuard's connect_timeout, 10 s.
        assert time.monotonic() - began < 8.0
    finally:
        own_site.pair.replica.resume()
    own_site.ready()


def test_a_replica_that_is_promoted_under_load_serves_nobody_any_more(own_site: Site) -> None:
    stale = []

    def client(number: int) -> None:
        cookie = ""
        for turn in range(40):
            name = f"{number}-{turn}"
            cookie = own_site.ask(partial(own_site.add, name), "POST", HTTP_COOKIE=cookie).cookie
            if name not in own_site.ask(own_site.names, HTTP_COOKIE=cookie).body.split():
                stale.append(name)
            if (number, turn) == (0, 10):
                own_site.pair.replica.promote()

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(client, range(4)))
    assert stale == []
    wait_until(lambda: own_site.ask(own_site.where).body == "primary", timeout=60.0, what="its end as a replica")
    (replica,) = own_site.replicas.stats()["replicas"].values()
    assert not replica["usable"]


def test_a_replica_that_has_gone_back_is_asked_anew(own_site: Site) -> None:
    """As after a crash. To get there for certain the replica is made believe that it was further."""
    (replica,) = own_site.replicas.replicas
    own_site.replicas._next_check += 60.0
    assert isinstance(replica.mark, Lsn)
    replica.mark = Lsn(replica.mark.value + (1 << 30))
    own_site.replica.dispose()  # as a restart does
    places: list[str] = []
    answer = own_site.ask(lambda: places.append(own_site.where()))
    assert (answer.status, places) == ("200 OK", ["primary"])
    assert own_site.replicas.stats()["primary"]["again"] == 1
    own_site.replicas._next_check = 0.0
    own_site.ready()


def test_of_two_replicas_the_one_that_has_caught_up_serves(
    own_pair: PostgreSQLPair, make_site: Callable[..., Site]
) -> None:
    with Standby(own_pair.primary) as second:
        engine = create_engine(second.url())
        site = make_site(own_pair, more=[engine], wait=5.0).ready()
        wait_until(lambda: site.ask(site.where).body and all_usable(site), timeout=60.0, what="both replicas")
        own_pair.pause_replay()
        cookie = ""
        for number in range(20):
            cookie = site.ask(partial(site.add, f"{number}"), "POST", HTTP_COOKIE=cookie).cookie
            assert str(number) in site.ask(site.names, HTTP_COOKIE=cookie).body.split()
        assert "behind" not in site.replicas.stats()["primary"]
        engine.dispose()


def all_usable(site: Site) -> bool:
    return all(each["usable"] for each in site.replicas.stats()["replicas"].values())


def test_a_forked_process_begins_anew(own_site: Site) -> None:
    own_site.replicas.reset()
    (replica,) = own_site.replicas.stats()["replicas"].values()
    assert replica == {"requests": 0, "probes": 0, "usable": False, "lag": None}
    own_site.ready()
