"""The thread that stops queries is there only while there is work, and a job that hangs holds up no other one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, exc, text

from wsgi_dbguard import cancel, canceller, guard
from wsgi_dbguard.canceller import Job
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until

PATIENCE = 60.0  # seconds, however busy the machine


@pytest.fixture(autouse=True)
def _own_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of the test, and nothing that was aborted before it."""
    monkeypatch.setattr(canceller, "_canceller", canceller._Canceller())
    monkeypatch.setattr(canceller, "_aborted_at", float("-inf"))
    yield
    own = canceller._canceller
    wait_until(lambda: own.threads == 0, timeout=PATIENCE, what="the end of the threads")


def add(way: Callable[[], object]) -> Job:
    job = Job(way)
    canceller._canceller.add(job)
    return job


def later() -> float:
    return time.monotonic() + PATIENCE


def test_jobs_are_done_one_after_the_other_and_the_thread_goes() -> None:
    done: list[int] = []
    jobs = [add(lambda number=number: done.append(number)) for number in range(20)]  # type: ignore[misc]
    assert all(job.wait(later()) for job in jobs)
    assert done == list(range(20))
    wait_until(lambda: canceller._canceller.threads == 0, timeout=PATIENCE, what="the end of the thread")


def test_a_job_that_fails_is_done_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("the server is away")

    assert add(fail).wait(later())
    assert add(lambda: None).wait(later())
    assert "could not be cancelled on the server: the server is away" in caplog.text


def test_a_job_that_hangs_holds_up_no_later_one_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canceller, "_STUCK", 0.05)
    end = threading.Event()
    try:
        hanging = add(end.wait)
        wait_until(lambda: not canceller._canceller.jobs, timeout=PATIENCE, what="the beginning of the first job")
        assert not hanging.wait(time.monotonic() + 0.1)
        assert add(lambda: None).wait(later())
        assert not hanging.done
    finally:
        end.set()


def test_nobody_waits_longer_than_he_wants_to() -> None:
    end = threading.Event()
    try:
        assert not add(end.wait).wait(time.monotonic() + 0.05)
    finally:
        end.set()


@pytest.fixture
def engine(postgres: PostgreSQL, make_engine: Callable[..., Engine]) -> Engine:
    engine = make_engine(postgres.url(application_name="aborts"), pool_size=5)
    guard(engine)
    return engine


def test_abort_stops_what_every_connection_in_use_is_doing(engine: Engine, postgres: PostgreSQL) -> None:
    sql = "select count(*) from pg_stat_activity where application_name = 'aborts' and wait_event = 'PgSleep'"
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with engine.connect() as connection:
                connection.execute(text("select pg_sleep(120)"))
        except exc.OperationalError as error:
            raised.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: postgres.query(sql) == [(3,)], timeout=PATIENCE, what="the queries")
    finally:
        canceller.abort(PATIENCE)
        for thread in threads:
            thread.join()
    assert len(raised) == 3
    assert postgres.query(sql) == [(0,)]


def test_abort_is_bounded_and_does_not_raise(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(cancel, "way", lambda *ignored: end.wait)
    with engine.connect():
        begun = time.monotonic()
        canceller.abort(0.2)
        canceller.abort(0.2)  # waits for the same
        assert 0.2 <= time.monotonic() - begun < PATIENCE
        end.set()

    def broken(*ignored: object) -> None:
        raise LookupError("no way")

    monkeypatch.setattr(cancel, "way", broken)
    monkeypatch.setattr(canceller, "_aborted_at", float("-inf"))
    with engine.connect():
        canceller.abort()


ENDS = """
import sys, threading, time, types
from wsgi_dbguard import canceller

class Hub:
    def destroy(self, destroy_loop):
        ending.wait(60)
        print("destroyed", flush=True)

canceller._LAST_WORDS = 120
ending = threading.Event()
sys.modules["gevent"] = types.SimpleNamespace(get_hub=Hub)
threading._register_atexit(ending.set)
job = canceller.Job(lambda: None)
canceller._canceller.add(job)
assert job.wait(time.monotonic() + 60)
"""


def test_the_process_ends_after_the_event_loop_of_the_thread() -> None:
    """With gevent it would be destroyed while the process is taken down, which corrupts the heap now and then."""
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout) == (0, "destroyed\n"), ended.stderr


def test_a_forked_child_has_a_thread_of_its_own() -> None:
    end = threading.Event()
    hanging = add(end.wait)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads, that is what this is about
            child = os.fork()
        if not child:
            try:
                os._exit(0 if add(lambda: None).wait(time.monotonic() + 30.0) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not hanging.done
    finally:
        end.set()
