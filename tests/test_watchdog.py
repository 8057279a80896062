"""Deadlines hold while the interpreter waits in C, in numbers, after a fork and under gevent; and leave no thread."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import pytest

from wsgi_dbguard import watchdog
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.watchdog import Deadline


def threads() -> set[str]:
    """Of this process, those that Python does not know included."""
    return set(os.listdir("/proc/self/task"))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    """Each test begins without a thread of the watchdog's, and may ask whether it is gone again."""
    wait_until(lambda: watchdog._watchdog.next_due is None, timeout=60.0, what="the end of the thread")


def ended(before: set[str]) -> bool:
    return wait_until(lambda: threads() <= before, timeout=60.0, what="the end of the watchdog's thread")


def test_an_action_is_called_when_the_time_is_up_and_not_earlier() -> None:
    called: SimpleQueue[float] = SimpleQueue()
    before, start = threads(), time.monotonic()
    with Deadline(0.1, lambda: called.put(time.monotonic())) as deadline:
        assert called.get(timeout=60.0) - start >= 0.1
    assert deadline.expired
    assert ended(before)
    assert called.empty()


def test_a_call_that_ends_in_time_is_left_alone() -> None:
    called: list[int] = []
    with Deadline(0.5, lambda: called.append(1)) as deadline:
        pass
    with Deadline(0.6, lambda: None) as later:
        wait_until(lambda: later.expired, timeout=60.0, what="a later deadline")
    assert not called
    assert not deadline.expired


def test_the_thread_goes_with_the_last_deadline() -> None:
    before = threads()
    with Deadline(1.0, lambda: None):
        assert len(threads() - before) == 1
    assert ended(before)


def test_a_shorter_deadline_comes_first_though_it_was_set_later() -> None:
    order: SimpleQueue[str] = SimpleQueue()
    with Deadline(1.0, lambda: order.put("long")), Deadline(0.05, lambda: order.put("short")):
        assert [order.get(timeout=60.0), order.get(timeout=60.0)] == ["short", "long"]


def test_a_hundred_blocked_threads_are_each_woken_by_their_own_deadline() -> None:
    before = threads()

    def blocked(seconds: float) -> bool:
        ours, other = socket.socketpair()
        with ours, other, Deadline(seconds, lambda: ours.shutdown(socket.SHUT_RDWR)) as deadline:
            ours.recv(1)
        return deadline.expired

    with ThreadPoolExecutor(100) as pool:
        assert all(pool.map(blocked, [random.uniform(0.01, 0.5) for _ in range(100)]))
    assert ended(before)


def test_deadlines_that_come_and_go_in_many_threads_never_fire_early_nor_get_lost() -> None:
    early: list[float] = []

    def come_and_go(seed: int) -> int:
        choice, fired = random.Random(seed), 0
        for _ in range(200):
            due = time.monotonic() + 0.005

            def action(due: float = due) -> None:
                if time.monotonic() < due:
                    early.append(due)

            with Deadline(0.005, action) as deadline:
                if choice.random() < 0.2:
                    wait_until(partial(getattr, deadline, "expired"), timeout=60.0, what="a deadline", interval=0.001)
                    fired += 1
        return fired

    before = threads()
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(come_and_go, range(8))) > 100
    assert not early
    assert ended(before)


def test_an_action_that_raises_is_logged_and_takes_no_other_along(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def fail() -> None:
        raise OSError("no")

    with Deadline(0.02, fail) as failing, Deadline(0.1, done.set):
        assert done.wait(60.0)
    assert failing.expired
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_an_exception_in_the_block_takes_the_deadline_back() -> None:
    called: list[int] = []
    with pytest.raises(KeyboardInterrupt), Deadline(0.5, lambda: called.append(1)):
        raise KeyboardInterrupt
    with Deadline(0.6, lambda: None) as later:
        wait_until(lambda: later.expired, timeout=60.0, what="a later deadline")
    assert not called


def test_without_a_thread_to_be_had_a_call_has_no_limit_and_nothing_is_left_to_fire_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []

    def refuse(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", refuse)
        with Deadline(0.02, lambda: called.append(1)) as unlimited:
            pass
    assert not unlimited.expired
    assert [record.getMessage() for record in caplog.records] == [
        "no limit for a call to the database: can't start new thread"
    ]
    with Deadline(0.1, lambda: None) as later:
        wait_until(lambda: later.expired, timeout=60.0, what="a later deadline")
    assert not called


BEHIND_A_FAR_ONE = """
import threading, time
from wsgi_dbguard.watchdog import Deadline
done = threading.Event()
with Deadline(3600.0, lambda: None) as far:
    time.sleep(0.2)  # the thread sleeps by now, for an hour
    with Deadline(0.05, done.set):
        print(done.wait(60.0), far.expired)
"""


def test_a_far_deadline_holds_up_neither_a_near_one_nor_the_end_of_the_process(run_python: Callable[..., str]) -> None:
    assert run_python(BEHIND_A_FAR_ONE) == "True False\n"


IN_A_CHILD = """
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # to fork with threads is what is tested
from wsgi_dbguard.watchdog import Deadline
with Deadline(3600.0, lambda: None):
    child = os.fork()
    if not child:
        done = threading.Event()
        with Deadline(0.05, done.set) as deadline:
            os._exit(0 if done.wait(60.0) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_deadlines_work_in_a_forked_child(run_python: Callable[..., str]) -> None:
    assert run_python(IN_A_CHILD) == "0\n"


UNDER_GEVENT = """
from gevent import monkey
monkey.patch_all()
import os, select, socket, threading
from wsgi_dbguard.watchdog import Deadline
read, write = os.pipe()
with Deadline(0.05, lambda: os.write(write, b"x")) as deadline:
    # The whole hub stands still, as in a C driver: no greenlet gets its turn.
    monkey.get_original("select", "select")([read], [], [], 60.0)
    print(deadline.expired)
"""


def test_under_gevent_a_deadline_comes_while_the_hub_is_blocked(run_python: Callable[..., str]) -> None:
    pytest.importorskip("gevent")
    assert run_python(UNDER_GEVENT) == "True\n"
