"""S6, the same request twice: a client that got no answer sends its order again, and has ordered twice.

With an Idempotency-Key it has ordered once, wherever the worker was killed or stopped at the first time: gunicorn,
PostgreSQL and MariaDB. A worker that was stopped past its lease and goes on then cannot commit any more.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from wsgi_dbguard.idempotency import ddl
from wsgi_dbguard.lab.mariadb import MariaDB, ServerMissing
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import gone, wait_until
from wsgi_dbguard.lab.servers import APPS, Server, gunicorn

pytestmark = pytest.mark.slow

LEASE = 3.0  # seconds
LONGEST = 60.0  # seconds to wait for anything


@pytest.fixture(scope="module", params=["PostgreSQL", "MariaDB"])
def database(request: pytest.FixtureRequest) -> Iterator[PostgreSQL | MariaDB]:
    try:
        server = PostgreSQL() if request.param == "PostgreSQL" else MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server as running:
        running.query("create table orders (item varchar(40))")
        for statement in ddl(running.name.lower()).split(";")[:-1]:
            running.query(statement)
        yield running


@dataclass
class Answer:
    status: int  # 0: none
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The problem that it tells, or its body."""
        problem = self.headers.get("Content-Type") == "application/problem+json"
        return json.loads(self.body)["type"].rpartition(":")[2] if problem else self.body


class Site:
    """A gunicorn with two workers, and a client that sends the same order again and again."""

    def __init__(self, server: Server, database: PostgreSQL | MariaDB, directory: Path, item: str) -> None:
        self.server = server
        self.database = database
        self.directory = directory
        self.item = item
        self.threads = ThreadPoolExecutor(4)

    def send(self) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=LONGEST)
        try:
            connection.request("POST", "/orders", self.item, {"Idempotency-Key": f'"{self.item}"'})
            response = connection.getresponse()
            return Answer(response.status, response.read().decode(), dict(response.headers))
        except (OSError, http.client.HTTPException):
            return Answer(0)
        finally:
            connection.close()

    def send_and_hold(self, moment: str) -> tuple[Future[Answer], int]:
        """Send the order; the answer to come, and the process that is held at `moment`."""
        (self.directory / f"hold-{moment}").touch()
        answer = self.threads.submit(self.send)
        held = self.directory / f"held-{moment}"
        wait_until(held.exists, timeout=LONGEST, what=f"a worker to be held at {moment}")
        return answer, int(held.read_text())

    def send_until(self, kind: str) -> Answer:
        """Send it again, as long as it is said to be running."""
        got: list[Answer] = []

        def answer() -> bool:
            got.append(self.send())
            assert got[-1].kind in (kind, "idempotency-running"), got[-1]
            return got[-1].kind == kind

        wait_until(answer, timeout=LONGEST, what=f"the answer {kind}", interval=0.1)
        return got[-1]

    def go_on(self) -> None:
        (self.directory / "go").touch()

    @property
    def rows(self) -> int:
        return int(self.database.query("select count(*) from orders where item = %s", self.item)[0][0])

    def close(self) -> None:
        self.go_on()
        self.threads.shutdown()


@pytest.fixture
def site(request: pytest.FixtureRequest, database: PostgreSQL | MariaDB, tmp_path: Path) -> Iterator[Site]:
    guarded = getattr(request, "param", True)
    url = database.url("psycopg2") if isinstance(database, PostgreSQL) else database.url("pymysql", ssl_disabled="true")
    hold = tmp_path / "hold"
    hold.mkdir()
    with gunicorn(
        "keyed:guarded()" if guarded else "keyed:unguarded()",
        "--workers=2",
        "--timeout=200",
        guarded=guarded,
        directory=tmp_path,
        path=[APPS],
        DATABASE_URL=url,
        KEYED_LEASE=str(LEASE),
        KEYED_HOLD=str(hold),
    ) as server:
        server.ready()
        site = Site(server, database, hold, f"order {tmp_path.name}"[-40:])
        try:
            yield site
        finally:
            site.close()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid), timeout=LONGEST, what="the end of the worker")


@pytest.mark.parametrize("site", [False], indirect=True, ids=["unguarded"])
def test_without_it_the_order_is_there_twice(site: Site) -> None:
    answer, pid = site.send_and_hold("committed")
    kill(pid)
    assert answer.result(LONGEST).status == 0
    assert site.send().status == 200
    assert site.rows == 2


@pytest.mark.parametrize("moment", ["claimed", "inserted"])
def test_a_worker_killed_before_the_commit_keeps_the_key_for_its_lease(site: Site, moment: str) -> None:
    answer, pid = site.send_and_hold(moment)
    assert site.send().kind == "idempotency-running"
    began = time.monotonic()
    kill(pid)
    assert answer.result(LONGEST).status == 0
    last = site.send_until(site.item)
    # The lease began before it was killed; the rest is for a machine that is busy.
    assert time.monotonic() - began < LEASE + 20
    assert last.headers.get("Idempotent-Replayed") is None
    assert site.send().headers["Idempotent-Replayed"] == "true"
    assert site.rows == 1


def test_one_killed_after_it_is_not_done_again(site: Site) -> None:
    answer, pid = site.send_and_hold("committed")
    kill(pid)
    assert answer.result(LONGEST).status == 0
    assert site.send_until("idempotency-applied").status == 409
    assert site.rows == 1


def test_one_killed_when_it_has_answered_has_stored_its_answer(site: Site) -> None:
    answer, pid = site.send_and_hold("closing")
    kill(pid)
    assert answer.result(LONGEST).body == site.item
    assert (site.send().body, site.send().headers["Idempotent-Replayed"]) == (site.item, "true")
    assert site.rows == 1


@pytest.mark.parametrize("moment", ["claimed", "inserted"])
def test_one_stopped_past_its_lease_cannot_commit(site: Site, moment: str) -> None:
    answer, pid = site.send_and_hold(moment)
    os.kill(pid, signal.SIGSTOP)
    try:
        second = site.send_until(site.item)
        assert site.rows == 1
        assert second.headers.get("Idempotent-Replayed") is None
        site.go_on()
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    first = answer.result(LONGEST)
    assert (first.status, first.body, first.headers["Idempotent-Replayed"]) == (200, site.item, "true")
    assert site.rows == 1


def test_one_stopped_after_its_commit_stores_its_answer_when_it_goes_on(site: Site) -> None:
    answer, pid = site.send_and_hold("committed")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert site.send_until("idempotency-applied").status == 409
        site.go_on()
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert answer.result(LONGEST).body == site.item
    assert site.send().headers["Idempotent-Replayed"] == "true"
    assert site.rows == 1
