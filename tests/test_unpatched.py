"""`original`: what the standard library was before gevent came."""

from __future__ import annotations

import _thread
import select
import subprocess
import sys
import threading

from wsgi_dbguard.unpatched import original


def test_without_gevent_it_is_the_librarys() -> None:
    assert original("select", "poll") is select.poll
    assert original("_thread", "allocate_lock") is _thread.allocate_lock
    assert original("threading", "Thread") is threading.Thread


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_under_gevent_it_is_the_interpreters_also_when_patched_after_the_import() -> None:
    seen = run("""
import select, _thread
poll, start, lock = select.poll, _thread.start_new_thread, _thread.allocate_lock
from wsgi_dbguard.unpatched import original
from gevent import monkey
assert original("select", "poll") is poll  # imported, nothing patched yet
monkey.patch_all()
assert select.poll is not poll and _thread.start_new_thread is not start
assert original("select", "poll") is poll
assert original("_thread", "start_new_thread") is start
assert original("_thread", "allocate_lock") is lock
import time
assert original("select", "POLLIN") == select.POLLIN  # never patched
print("ok")
""")
    assert seen == "ok"


def test_an_original_thread_runs_while_the_event_loop_is_blocked() -> None:
    seen = run("""
from gevent import monkey; monkey.patch_all()
import gevent
from wsgi_dbguard.unpatched import original

told = original("_thread", "allocate_lock")()
told.acquire()
original("_thread", "start_new_thread")(told.release, ())
greenlet = gevent.spawn(print, "switched")
# Nothing of gevent gets a turn in here.
print(told.acquire(timeout=30), greenlet.started and not greenlet.dead)
greenlet.join()
""")
    assert seen == "True True\nswitched"


def test_an_original_poll_does_not_switch_greenlets() -> None:
    seen = run("""
from gevent import monkey; monkey.patch_all()
import gevent, os, select
from wsgi_dbguard.unpatched import original

ran = []
greenlet = gevent.spawn(ran.append, "another greenlet")
reader, writer = os.pipe()
for _ in range(100):
    poll = original("select", "poll")()
    poll.register(reader, select.POLLIN)
    assert poll.poll(0) == []
print(ran)
poll = select.poll()
poll.register(reader, select.POLLIN)
poll.poll(10)
print(ran)
""")
    assert seen == "[]\n['another greenlet']"
