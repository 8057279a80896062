"""A parent is killed while its children live on: the server's side of its connections ends at once.

The scenario (first parameter `forks`) runs in interpreters of its own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.peers import Peer, Peers

QUICK = ["psycopg2", "mysqlclient"]
DRIVERS = ["psycopg2", "psycopg", "pg8000", "pymysql", "mysqlclient", "mariadb", "mysql-connector"]
PEERS = [
    pytest.param((driver, tls), id=f"{'tls' if tls else 'plain'}-{driver}", marks=marks)
    for tls in (False, True)
    for driver in DRIVERS
    for marks in [() if driver in QUICK and not tls else pytest.mark.slow]
]


def killed_parent(forks: Forks, url: str, certificate: str | None, guarded: bool) -> None:
    """The parent is killed, its child lives on, with a connection of its own."""
    if guarded:
        forks.guard()
    engine = forks.engine(url, certificate)
    held = [engine.connect() for _ in range(3)]
    held[0].close()
    held[1].detach()
    ours, theirs = os.pipe()
    if not os.fork():
        os.close(theirs)
        os.read(ours, 1)  # end of file: the parent is gone
        own = engine if guarded else forks.engine(url, certificate)
        with own.connect() as connection:
            forks.ask(str(connection.execute(text(forks.sql(own).backend)).scalar()))
        forks.tell(result="told")
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def peers() -> Iterator[Peers]:
    from wsgi_dbguard.lab.peers import Peers

    with Peers() as peers:
        yield peers


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest, peers: Peers) -> Peer:
    from wsgi_dbguard.lab.peers import ServerMissing

    driver, tls = request.param
    try:
        return peers(driver, tls=tls)
    except ServerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("guarded", [False, True])
def test_no_backend_is_left_when_the_parent_is_killed_while_children_live_on(
    guarded: bool, peer: Peer, scenario: Callable[..., Any]
) -> None:
    from wsgi_dbguard.lab.process import wait_until

    left: list[int] = []

    def answer(own: str) -> None:
        try:
            # Without the guard nothing is to happen, so there is nothing to wait for.
            wait_until(
                lambda: peer.server.backends() == [int(own)],
                timeout=40.0 if guarded else 0.5,
                what="the end of the parent's backends",
            )
        except TimeoutError:
            left.append(len(peer.server.backends()))

    peer.alone()
    arguments = {"url": peer.url(), "certificate": peer.certificate, "guarded": guarded}
    assert scenario(killed_parent, answer=answer, timeout=120.0, **arguments) == "told"
    assert left == ([] if guarded else [4])
