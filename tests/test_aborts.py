"""SIGABRT is seen in the middle of C code, and whoever had the wake-up descriptor before still gets every signal."""

from __future__ import annotations

from collections.abc import Callable

PROGRAM = """
import ctypes, os, signal, sys, threading, time, warnings
from wsgi_dbguard import aborts, canceller

seen = []
canceller.abort = lambda: seen.append(time.monotonic())
before, far = os.pipe()
os.set_blocking(far, False)
signal.set_wakeup_fd(far)
signal.signal(signal.SIGABRT, lambda *ignored: None)
signal.signal(signal.SIGUSR1, lambda *ignored: None)
aborts.listen()
aborts.listen()
"""


def test_it_is_seen_while_the_main_thread_is_in_c(run_python: Callable[..., str]) -> None:
    program = (
        PROGRAM
        + """
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGABRT)).start()
ctypes.CDLL(None).sleep(3600)  # a signal ends it; it goes on in C
libc = ctypes.CDLL(None)
before_handlers = time.monotonic()
while not seen and time.monotonic() < before_handlers + 30:
    libc.usleep(1000)
print(len(seen), list(os.read(before, 10)) == [signal.SIGABRT])
"""
    )
    assert run_python(program) == "1 True\n"


def test_other_signals_are_passed_on_only(run_python: Callable[..., str]) -> None:
    program = (
        PROGRAM
        + """
os.kill(os.getpid(), signal.SIGUSR1)
print(list(os.read(before, 10)) == [signal.SIGUSR1], seen)
"""
    )
    assert run_python(program) == "True []\n"


def test_the_signals_of_a_forked_child_are_not_the_parents(run_python: Callable[..., str]) -> None:
    program = (
        PROGRAM
        + """
warnings.simplefilter("ignore", DeprecationWarning)  # there are threads, that is what this is about
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGABRT)
    os._exit(0)
assert os.waitpid(child, 0) == (child, 0)
os.kill(os.getpid(), signal.SIGUSR1)
numbers = b""
while signal.SIGUSR1 not in numbers:  # what the child wrote came before it
    numbers += os.read(before, 10)
print(seen)
"""
    )
    assert run_python(program) == "[]\n"


def test_outside_the_main_thread_it_says_so(run_python: Callable[..., str]) -> None:
    program = """
import threading
from wsgi_dbguard import aborts
def listen():
    try:
        aborts.listen()
    except ValueError as error:
        print("refused")
thread = threading.Thread(target=listen)
thread.start()
thread.join()
aborts.listen()
"""
    assert run_python(program) == "refused\n"
