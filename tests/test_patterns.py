"""Regular expressions that are compiled when they are used, and what else the import leaves for later."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from wsgi_dbguard.patterns import lazily

DEAR = ("asyncio", "ctypes", "email", "http", "multiprocessing", "socket", "subprocess", "tempfile", "urllib.request")
OPTIONAL = ("wsgi_dbguard.deadline", "wsgi_dbguard.settle", "wsgi_dbguard.health", "wsgi_dbguard.routing")


def test_it_is_compiled_when_it_is_used_and_then_as_good_as_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    original = re.compile

    def compile_(pattern: str, flags: int = 0) -> re.Pattern[str]:
        compiled.append(pattern)
        return original(pattern, flags)

    monkeypatch.setattr(re, "compile", compile_)
    pattern = lazily(r"(a+)b", re.IGNORECASE)
    assert compiled == []
    for _ in range(2):
        match = pattern.search("xAAb")
        assert match is not None
        assert match[1] == "AA"
    assert compiled == [r"(a+)b"]
    assert pattern.findall("ab aab") == ["a", "aa"]
    assert pattern.sub("-", "ab aab") == "- -"


def test_a_mistake_in_it_shows_when_it_is_used() -> None:
    pattern = lazily("(")
    with pytest.raises(re.error):
        pattern.search("")


def test_the_import_brings_nothing_dear_beyond_sqlalchemy() -> None:
    code = """
import sys, sqlalchemy.orm
before = set(sys.modules)
import wsgi_dbguard
print(*set(sys.modules) - before)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "wsgi_dbguard.transactions" in told.split()
    assert not set(told.split()) & {*DEAR, *OPTIONAL}
