"""From one request to the next: the position travels, and a replica serves only whom it has caught up with."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from wsgi_dbguard import DatabaseUnavailable, DBGuard, SettingError
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.request import current
from wsgi_dbguard.routing import Replicas, primary
from wsgi_dbguard.routing.tokens import Tokens

from .conftest import Answer, Item, Site

TOKENS = Tokens("secret", name="db-position", lifetime=600.0)


def pinned(answer: Answer) -> bool:
    token = TOKENS.load([answer.headers["DB-Position"]])
    return token.pinned > time.time() and token.position is None


def test_who_only_reads_gets_no_token(site: Site) -> None:
    assert not {"Set-Cookie", "DB-Position"} & site.ask(site.where).headers.keys()


def test_who_wrote_gets_the_position_in_cookie_and_header(site: Site) -> None:
    answer = site.ask(site.add, "POST")
    pattern = r"db-position=([\w.-]+); Max-Age=600; Path=/; HttpOnly; SameSite=Lax"
    match = re.fullmatch(pattern, answer.headers["Set-Cookie"])
    assert match
    assert match[1] == answer.headers["DB-Position"]
    assert site.ask(site.add, "POST", **{"wsgi.url_scheme": "https"}).headers["Set-Cookie"].endswith("; Secure")


@pytest.mark.parametrize("way", ["cookie", "header"])
def test_a_replica_that_is_behind_is_not_asked(site: Site, way: str) -> None:
    site.pair.pause_replay()
    written = site.ask(site.add, "POST")
    told = (
        {"HTTP_COOKIE": f"a=b; {written.cookie}"}
        if way == "cookie"
        else {"HTTP_DB_POSITION": written.headers["DB-Position"]}
    )
    assert site.ask(site.names, **told).body == "anvil"
    assert site.ask(site.names).body == ""  # somebody else reads from the replica
    site.pair.resume_replay()
    site.pair.caught_up()
    wait_until(lambda: site.ask(site.where, **told).body == "replica", timeout=60.0, what="the replica")
    assert site.ask(site.names, **told).body == "anvil"


def test_the_position_never_goes_back(site: Site) -> None:
    first = site.ask(site.add, "POST").headers["DB-Position"]
    second = site.ask(site.add, "POST", HTTP_DB_POSITION=first).headers["DB-Position"]
    third = site.ask(site.where, "POST", HTTP_DB_POSITION=second).headers["DB-Position"]
    positions = [TOKENS.load([each]).position for each in (first, second, third)]
    values = [int(str(each).replace("/", "").zfill(16), 16) for each in positions]
    assert values == sorted(values)


def test_a_known_mark_costs_no_question(site: Site) -> None:
    written = site.ask(site.add, "POST")
    told = {"HTTP_COOKIE": written.cookie}
    wait_until(lambda: site.ask(site.where, **told).body == "replica", timeout=60.0, what="the replica")
    (before,) = site.replicas.stats()["replicas"].values()
    site.replicas._next_check += 60.0
    for _ in range(20):
        assert site.ask(site.where, **told).body == "replica"
    (after,) = site.replicas.stats()["replicas"].values()
    assert (after["probes"], after["requests"]) == (before["probes"], before["requests"] + 20)


def test_one_that_waits_is_served_by_the_replica(make_site: Callable[..., Site]) -> None:
    site = make_site(wait=60.0, max_lag=300.0, pin=301.0, probe_timeout=30.0).ready()
    site.pair.pause_replay()
    written = site.ask(site.add, "POST")
    site.replicas.replicas[0].mark = None
    (replica,) = site.replicas.replicas
    before = replica.probes

    def resume() -> None:
        # More than the look that `_check` takes: the request was told "behind", and waits.
        wait_until(lambda: replica.probes > before + 2, timeout=60.0, what="a request that waits")
        site.pair.resume_replay()

    thread = Thread(target=resume)
    thread.start()
    try:
        assert site.ask(site.where, HTTP_COOKIE=written.cookie).body == "replica"
    finally:
        thread.join()
    assert site.replicas.stats()["waited"] == 1


@pytest.mark.parametrize("bad", ["x", "", "a.b.c", "\xff", "." * 5000])
def test_a_bad_token_counts_as_none(site: Site, bad: str) -> None:
    assert site.ask(site.where, HTTP_DB_POSITION=bad, HTTP_COOKIE=f"db-position={bad}").body == "replica"


def test_what_commits_after_the_headers_gives_a_pin(site: Site) -> None:
    def view() -> Iterator[bytes]:
        with site.session() as session:
            session.execute(text("INSERT INTO items (name) VALUES ('late')"))
            yield b"first"
            session.commit()

    def streaming() -> Iterator[bytes]:
        return view()

    answer = site.ask(streaming, "POST")
    assert answer.body == "first"
    assert pinned(answer)
    assert site.ask(site.names, HTTP_COOKIE=answer.cookie).body == "late"
    assert site.ask(site.where, HTTP_COOKIE=answer.cookie).body == "primary"


def test_what_is_written_after_the_headers_gives_a_pin(site: Site) -> None:
    def view() -> Iterator[bytes]:
        site.names()
        yield b"first"
        site.add("late")

    site.pair.pause_replay()
    answer = site.ask(view, "POST")
    assert pinned(answer)
    assert site.ask(site.names, HTTP_COOKIE=answer.cookie).body == "late"


class Whole:
    """As frameworks answer: its iterator is that of a list."""

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"whole"])


@pytest.mark.parametrize("body", [Whole(), "whole", []])
def test_a_body_that_is_there_as_a_whole_gives_none(site: Site, body: object) -> None:
    def view() -> object:
        site.add()
        return body

    assert not pinned(site.ask(view, "POST"))


def test_nor_does_one_of_which_the_length_tells_that_nothing_follows(site: Site) -> None:
    def application(environ: Any, start_response: Any) -> Iterator[bytes]:
        site.add()
        start_response("200 OK", [("Content-Length", "5")])
        return (each for each in [b"whole"])

    site.application = DBGuard(application, site.primary, site.replica)
    assert not pinned(site.ask(site.where, "POST"))


class Other:
    """A group that is no business of the site's requests."""

    def __init__(self, site: Site) -> None:
        self.primary = create_engine(site.pair.primary.url())
        self.replica = create_engine(site.pair.replica.url())
        self.replicas = Replicas(
            self.primary, [self.replica], secret="other", cookie="other-position", header="Other-Position"
        )
        site.application = DBGuard(site._application, site.primary, site.replica, self.primary, self.replica)


@pytest.fixture
def other(site: Site) -> Iterator[Other]:
    other = Other(site)
    yield other
    for each in (other.primary, other.replica):
        each.dispose()


def test_a_group_costs_nothing_where_its_primary_was_not_used(site: Site, other: Other) -> None:
    def stream() -> Iterator[bytes]:
        site.add()
        yield b"first"
        site.add()

    def raw() -> str:
        connection = site.primary.raw_connection()
        connection.close()
        return "raw"

    def autocommit() -> str:
        with site.primary.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("DELETE FROM items"))
        return "autocommit"

    def fail() -> None:
        with site.session() as session:
            session.add(Item(name="anvil"))
            session.commit()
            site.pair.primary.terminate(session.execute(text("SELECT pg_backend_pid()")).scalar_one())
            session.execute(text("SELECT 1"))

    event.listen(site.primary, "do_execute", lambda *ignored: False)  # its COMMIT is all that is seen
    asked: list[object] = []
    event.listen(other.primary, "checkout", lambda *ignored: asked.append(ignored))
    for method in ("GET", "POST"):
        for view in (site.add, site.where, stream, raw, autocommit, fail):
            answer = site.ask(view, method)
            assert "Other-Position" not in answer.headers, (method, view)
            assert ("DB-Position" in answer.headers) == (method == "POST" or view != site.where), (method, view)
    assert asked == []
    assert other.replicas.stats()["pins"] == 0


def test_each_of_two_groups_tells_of_its_own_writes(site: Site, other: Other) -> None:
    def view() -> str:
        with other.primary.begin() as connection:
            connection.execute(text("DELETE FROM items"))
        return site.where()

    answer = site.ask(view)
    assert answer.body == "replica"
    assert "Other-Position" in answer.headers
    assert "DB-Position" not in answer.headers


def test_without_a_connection_to_ask_with_there_is_a_pin(make_site: Callable[..., Site]) -> None:
    site = make_site(pool={"pool_size": 1, "max_overflow": 0, "pool_timeout": 30})
    sessions = []

    def view() -> Iterator[bytes]:
        sessions.append(site.session())
        sessions[0].execute(text("SELECT 1"))
        yield b"held"

    began = time.monotonic()
    answer = site.ask(view, "POST")
    assert time.monotonic() - began < 25.0  # it did not wait for the pool
    sessions[0].close()
    assert pinned(answer)


def test_a_position_that_cannot_be_read_gives_a_pin(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*ignored: object) -> None:
        raise ValueError

    monkeypatch.setattr("wsgi_dbguard.routing.route.written", fail)
    assert pinned(site.ask(site.add, "POST"))


def test_a_commit_in_doubt_gives_a_pin(site: Site) -> None:
    def view() -> str:
        site.names()
        request = current.get()
        assert request is not None
        request.in_doubt = True
        raise RuntimeError

    answer = site.ask(view, "POST")
    assert answer.status == "503 Service Unavailable"
    assert pinned(answer)


def test_a_write_that_reached_the_replica_runs_again_on_the_primary(site: Site) -> None:
    site.pair.primary.query(
        "CREATE OR REPLACE FUNCTION visit() RETURNS int LANGUAGE sql AS"
        " $$ INSERT INTO items (name) VALUES ('visit') RETURNING id $$"
    )
    site.pair.caught_up()
    places = []

    def view() -> str:
        places.append(site.where())
        with site.session() as session:
            session.scalar(text("SELECT visit()"))
            session.commit()
        return "done"

    answer = site.ask(view)
    assert (answer.status, answer.body, places) == ("200 OK", "done", ["replica", "primary"])
    assert "DB-Position" in answer.headers
    assert site.pair.primary.query("SELECT name FROM items") == [("visit",)]
    # The replica is a standby, not a primary that was demoted: its connections stay.
    site.ready()
    # As many as there are: the budget is for outages.
    assert {site.ask(view).status for _ in range(40)} == {"200 OK"}


def test_what_the_primary_fails_does_not_run_again_without_end(site: Site) -> None:
    """Whether the request has read from a replica or not."""

    def view() -> str:
        request = current.get()
        assert request is not None
        site.where()
        if request.attempt == 1:
            with primary(), site.session() as session:
                site.pair.primary.terminate(session.execute(text("SELECT pg_backend_pid()")).scalar_one())
                session.execute(text("SELECT 1"))
        return "done"

    statuses = [site.ask(view).status for _ in range(30)]
    assert statuses[0] == "200 OK"
    assert "503 Service Unavailable" in statuses


def no_replica(site: Site) -> None:
    """None is within max_lag any more."""
    for each in site.replicas.replicas:
        each.covered = None
    site.replicas._next_check += 60.0


def test_when_all_lag_it_is_the_primary(site: Site) -> None:
    no_replica(site)
    assert site.ask(site.where).body == "primary"
    assert site.replicas.stats()["primary"]["lagging"] >= 1


def test_when_all_lag_it_is_a_replica_if_stale_is_good_enough(make_site: Callable[..., Site]) -> None:
    site = make_site(lagging="stale").ready()
    no_replica(site)
    assert site.ask(site.where).body == "replica"


def test_when_all_lag_it_is_a_503_if_the_primary_is_to_be_spared(make_site: Callable[..., Site]) -> None:
    site = make_site(lagging="refuse").ready()
    no_replica(site)
    assert site.ask(site.where).status == "503 Service Unavailable"

    def view() -> str:
        with pytest.raises(DatabaseUnavailable):
            site.where()
        return "told"

    assert site.ask(view).body == "told"


def test_a_replica_beyond_max_lag_is_out_until_it_has_caught_up(make_site: Callable[..., Site]) -> None:
    site = make_site(max_lag=0.5, check_every=0.1).ready()
    site.pair.pause_replay()
    site.ask(site.add, "POST")
    wait_until(lambda: site.ask(site.names).body == "anvil", timeout=60.0, what="the primary in its place")
    assert site.ask(site.where).body == "primary"
    site.pair.resume_replay()
    site.ready()


def test_impossible_ones_are_refused(site: Site) -> None:
    with pytest.raises(SettingError, match="already"):
        Replicas(site.primary, [site.replica], secret="x")
    with pytest.raises(SettingError, match="different engines"):
        Replicas(site.replica, [site.replica], secret="x")
    with pytest.raises(SettingError, match="at least one"):
        Replicas(site.replica, [], secret="x")
    with pytest.raises(TypeError, match="not str"):
        Replicas("postgresql://", [site.replica], secret="x")  # type: ignore[arg-type]
