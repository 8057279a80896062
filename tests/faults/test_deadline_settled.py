"""A COMMIT in doubt on a server that is stopped, and what PostgreSQL says of it when it is asked (``settle``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from sqlalchemy import text

from wsgi_dbguard.lab.drivers import driver_named

from .stopping import LONG, PING_TIMEOUT, Server, Site, ask, insert, instead, kind, site_of


@pytest.fixture
def site(server_of: Callable[..., Server]) -> Iterator[Site]:
    driver = driver_named("psycopg2")
    with site_of(driver, server_of(driver)) as site:
        yield site


def save(site: Site) -> Iterable[bytes]:
    with site.engine.begin() as connection:
        connection.execute(text("INSERT INTO ended VALUES ('once')"))
    return [b"saved"]


@pytest.mark.parametrize("goes_on", [True, False])
def test_it_is_settled_by_a_server_that_goes_on_and_no_other_is_waited_for(site: Site, goes_on: bool) -> None:
    with site.engine.connect(), site.engine.connect():
        pass  # there is another connection to ask on
    # Between what is asked for the settlement and the COMMIT.
    instead(site.engine, "do_commit", before=site.server.pause, after=site.server.resume if goes_on else None)
    response, seconds = ask(site, save, method="POST", settle=True)
    expected = (200, "saved") if goes_on else (503, "outcome-unknown")
    assert (response.status_code, kind(response)) == expected
    assert PING_TIMEOUT * (1 if goes_on else 2) <= seconds < LONG


def test_a_commit_that_was_not_sent_is_in_no_doubt(site: Site) -> None:
    """Of a server that does not even say which transaction it is."""
    response, seconds = ask(site, insert, method="POST", settle=True)
    assert (response.status_code, kind(response)) == (503, "unavailable")
    assert PING_TIMEOUT <= seconds < LONG
    assert site.server.query("select * from ended") == []
