"""Real faults under a running watch: the right verdict each time, and nothing left in the database."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import psycopg2
import pytest

from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.lab.proxy import FaultProxy
from wsgi_dbguard.watch import Beat, Fault, Heart, Trouble, Way, verdict

from .following import all_held, all_well, beat_of, fresh_is, nothing, tables

pytestmark = pytest.mark.slow

Follow = Callable[..., Heart]
Server = PostgreSQL | MariaDB
UPTIME = {
    "PostgreSQL": "select extract(epoch from clock_timestamp() - pg_postmaster_start_time())",
    "MariaDB": "select variable_value from information_schema.global_status where variable_name = 'UPTIME'",
}


@pytest.fixture(scope="module", params=["psycopg2", "pymysql"])
def driver(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    pytest.importorskip(name)
    return name


@pytest.fixture(scope="module")
def server(driver: str) -> Iterator[Server]:
    """One of this module alone, which its tests restart."""
    try:
        made: Server = PostgreSQL() if driver == "psycopg2" else MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with made:
        yield made


def up_for(server: Server, seconds: float) -> None:
    """Wait until the server has been up for so long; MariaDB tells whole seconds."""
    wait_until(lambda: float(server.query(UPTIME[server.name])[0][0]) >= seconds, timeout=60, what="its uptime")


def test_nothing_happens(server: Server, driver: str, follow: Follow) -> None:
    heart = follow(server.url(driver), (all_held, nothing))
    assert verdict(heart.beats).fault is Fault.NONE
    assert tables(server) == []


def test_connections_that_are_killed(server: Server, driver: str, follow: Follow) -> None:
    def seen(beats: Sequence[Beat]) -> bool:
        return beat_of(beats, Way.KEPT).trouble is not None

    def kill() -> None:
        # Whatever they do: MariaDB may not have noted yet that they are idle. No fresh one is there between two rounds.
        server.terminate(*server.backends())

    heart = follow(server.url(driver), (all_held, kill), (seen, nothing), (all_held, nothing))
    found = verdict(heart.beats)
    assert found.fault is Fault.CLIENT, found
    pool = [beat for beat in heart.beats if beat.way is Way.POOL]
    assert [beat.trouble for beat in pool if beat.trouble] == []
    assert sum(sum(beat.replaced.values()) for beat in pool) == 1
    assert tables(server) == []


def test_proxy_that_forwards_nothing(server: Server, driver: str, follow: Follow) -> None:
    with FaultProxy(server.host, server.port) as proxy:
        heart = follow(
            server.url_through(proxy.host, proxy.port, driver),
            (all_held, proxy.blackhole),
            (fresh_is(Trouble.SILENT), proxy.up),
            (all_well, nothing),
            timeout=2.0,
        )
    assert verdict(heart.beats).fault is Fault.NETWORK
    assert heart.left_behind is None
    assert tables(server) == []


def test_proxy_that_refuses_for_a_server_that_runs_on(server: Server, driver: str, follow: Follow) -> None:
    up_for(server, 3)

    def refuse() -> None:
        proxy.refuse()
        proxy.reset()

    with FaultProxy(server.host, server.port) as proxy:
        heart = follow(
            server.url_through(proxy.host, proxy.port, driver),
            (all_held, refuse),
            (fresh_is(Trouble.REFUSED), proxy.up),
            (all_well, nothing),
        )
    assert verdict(heart.beats).fault is Fault.NETWORK
    assert tables(server) == []


def test_restart_that_no_new_connection_meets(server: Server, driver: str, follow: Follow) -> None:
    def restarted(beats: Sequence[Beat]) -> bool:
        # Longer than a server's whole seconds are wrong.
        return all_held(beats) and beats[-1].at > 2.5

    heart = follow(server.url(driver), (restarted, server.restart), (all_well, nothing))
    found = verdict(heart.beats)
    assert all(beat.trouble is None for beat in heart.beats if beat.way is Way.FRESH)
    assert found.fault is Fault.SERVER
    assert "restarted" in found.evidence[0]
    assert tables(server) == []


def test_server_that_is_down_and_comes_back(server: Server, driver: str, follow: Follow) -> None:
    heart = follow(
        server.url(driver),
        (all_held, server.stop),
        (fresh_is(Trouble.REFUSED), server.start),
        (all_well, nothing),
    )
    assert heart.table is not None
    assert verdict(heart.beats).fault is Fault.SERVER
    assert tables(server) == []


@contextmanager
def hanging_writes(server: Server) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """To have the server answer nobody who writes, and to have it go on."""
    if isinstance(server, PostgreSQL):

        def wait_for(standby: str) -> None:
            server.query(f"alter system set synchronous_standby_names = '{standby}'")
            server.query("select pg_reload_conf()")

        yield lambda: wait_for("nobody"), lambda: wait_for("")
    else:
        with closing(server._connect()) as backup, backup.cursor() as cursor:
            yield lambda: cursor.execute("flush tables with read lock"), lambda: cursor.execute("unlock tables")


def test_server_that_answers_nobody_who_writes(server: Server, driver: str, follow: Follow) -> None:
    with hanging_writes(server) as (hang, go_on):
        heart = follow(
            server.url(driver), (all_held, hang), (fresh_is(Trouble.STUCK), go_on), (all_well, nothing), timeout=2.0
        )
    assert verdict(heart.beats).fault is Fault.SERVER
    assert tables(server) == []


def test_crash_that_no_new_connection_meets(server: Server, follow: Follow) -> None:
    if not isinstance(server, PostgreSQL):
        pytest.skip("where one process of the server takes the others with it")

    def crash() -> None:
        with closing(psycopg2.connect(server.url("psycopg2").replace("+psycopg2", ""))) as victim:
            ended = set(server.backends())
            os.kill(victim.info.backend_pid, signal.SIGKILL)

        def recovered() -> bool:
            with suppress(psycopg2.OperationalError):
                return not ended & set(server.backends())
            return False

        wait_until(recovered, timeout=60, what="the recovery")

    for driver in ("psycopg2", "psycopg", "pg8000"):
        pytest.importorskip(driver)
        found = verdict(follow(server.url(driver), (all_held, crash), (all_well, nothing)).beats)
        assert found.fault is Fault.SERVER, (driver, found)
        assert "crashed" in found.evidence[0]
    assert tables(server) == []
