"""A parent is killed while its children live on: the server's side of its connections ends at once.

The scenario (first parameter `forks`) runs in interpreters of its own, see wsgi_dbguard/lab/forking.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

if TYPE_CHECKING:
    from wsgi_dbguard.lab.forking import Forks
    from wsgi_dbguard.lab.peers import Peer

QUICK = ["psycopg2", "mysqlclient"]
TLS = True


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


def left(peer: Peer, scenario: Callable[..., Any], *, guarded: bool, patience: float) -> int:
    """The parent's backends that are there `patience` seconds after its end."""
    from wsgi_dbguard.lab.process import wait_until

    found = [0]

    def answer(own: str) -> None:
        try:
            wait_until(
                lambda: peer.server.backends() == [int(own)], timeout=patience, what="the end of the parent's backends"
            )
        except TimeoutError:
            found[0] = len(peer.server.backends()) - 1

    peer.alone()
    arguments = {"url": peer.url(), "certificate": peer.certificate, "guarded": guarded}
    assert scenario(killed_parent, answer=answer, timeout=120.0, **arguments) == "told"
    return found[0]


@pytest.mark.slow
def test_without_the_guard_every_backend_is_left(peer: Peer, scenario: Callable[..., Any]) -> None:
    # Nothing is to happen, so there is nothing to wait for.
    assert left(peer, scenario, guarded=False, patience=0.5) == 3


def test_no_backend_is_left_when_the_parent_is_killed_while_children_live_on(
    peer: Peer, scenario: Callable[..., Any]
) -> None:
    assert left(peer, scenario, guarded=True, patience=40.0) == 0
