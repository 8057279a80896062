"""Flask, Django and Pyramid applications under `Idempotent`, inside and outside of the guard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Database, url_of

PROGRAM = Path(__file__).with_name("frameworks.py")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "framework",
    ["flask", pytest.param("django", marks=pytest.mark.slow), pytest.param("pyramid", marks=pytest.mark.slow)],
)
def test_each_request_that_is_sent_twice_is_done_once(
    framework: str, database: Database, run_python: Callable[..., str]
) -> None:
    program = f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    outcomes: dict[str, Any] = json.loads(run_python(program, framework, url_of(database)))
    assert list(outcomes) == ["inside", "outside"]
    for outcome in outcomes.values():
        # Methods that take no key.
        assert outcome["GET"] == ["200 read 1 0", "200 read 2 0"]
        assert outcome["HEAD"] == ["200", "200"]
        assert outcome["keys"] == 0
        # The first answer once more.
        assert outcome["order"] == ["200 order 1 5", "200 order 1 5 replayed"]
        assert outcome["stream"] == ["200 in parts", "200 in parts replayed"]
        assert outcome["length"] == ["200 length 1 196608", "200 length 1 196608 replayed"]
        # A page for errors is an answer as well, once something was applied: the application's, or its framework's.
        assert outcome["sorry"] == ["500 …", "500 … replayed"]
        assert outcome["late"] == ["500 …", "500 … replayed"]
        # And none if nothing was.
        assert outcome["early"] == ["500 …", "200 early 2 5"]
        # What is too large to be kept.
        assert outcome["large"] == ["200 …", "409 idempotency-applied"]
        assert outcome["orders"] == ["early 2", "large 1", "late 1", "order 1", "sorry 1", "stream 1"]
