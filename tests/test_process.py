"""A child is told from its parent, whoever forked it; and where the system has no page that a fork wipes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wsgi_dbguard import process


def in_child(told: Callable[[], object], *, fork: Callable[[], int] = os.fork) -> str:
    """What `told` says in a forked child."""
    reading, writing = os.pipe()
    child = fork()
    if not child:
        try:
            os.write(writing, repr(told()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture(params=["page", "pid"])
def here(request: pytest.FixtureRequest) -> Any:
    if request.param == "page" and not sys.platform.startswith("linux"):
        pytest.skip("MADV_WIPEONFORK is Linux's")
    here = process._page() if request.param == "page" else process._ByPid()
    assert isinstance(here, mmap.mmap) == (request.param == "page")
    here[0] = 1
    return here


def test_a_child_is_another_process_until_it_says_so(here: Any) -> None:
    def told() -> list[bool]:
        before = bool(here[0])
        here[0] = 1
        return [before, bool(here[0]), in_child(lambda: bool(here[0])) == "True"]

    assert in_child(told) == "[False, True, False]"
    assert here[0]


def test_a_fork_that_python_does_not_see_is_one_too(here: Any) -> None:
    assert in_child(lambda: bool(here[0]), fork=ctypes.PyDLL(None).fork) == "False"


class Advised(mmap.mmap):
    """Memory of a system that takes every advice, or none."""

    knows_nothing = False

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        if self.knows_nothing:
            raise OSError(errno.EINVAL, "no such advice")


@pytest.mark.parametrize("knows_nothing", [True, False])
def test_a_system_that_wipes_nothing_is_not_relied_upon(monkeypatch: pytest.MonkeyPatch, knows_nothing: bool) -> None:
    monkeypatch.setattr(Advised, "knows_nothing", knows_nothing)
    monkeypatch.setattr(mmap, "mmap", Advised)
    here = process._page()
    here[0] = 1
    assert here[0]
    assert in_child(lambda: bool(here[0])) == "False"
