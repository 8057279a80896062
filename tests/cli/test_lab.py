"""`wsgi-dbguard lab`: the minute is played for real, and the guard's part of it is as promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsgi_dbguard.cli import lab, main


@pytest.mark.slow
def test_guard_answers_all_pages_of_a_minute_that_fails_others(tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    command = [sys.executable, "-m", "wsgi_dbguard", "lab", "--seconds", "20", "--only", "nothing", "--only", "guard"]
    done = subprocess.run([*command, "--html", html, "--json", "-"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    names = ["backends killed", "restart", "SIGKILL", "stopped", "blackhole", "demotion"]
    assert [fault["name"] for fault in figures["faults"]] == names
    guard, nothing = figures["contenders"]["guard"], figures["contenders"]["nothing"]
    assert (guard["pages"]["failed"], guard["pages"]["wrong"]) == (0, 0)
    assert (guard["orders"]["lost"], guard["orders"]["twice"]) == (0, 0)
    assert guard["pages"]["requests"] > 300
    assert guard["pages"]["held"] > 0
    failed = {failure["fault"] for failure in nothing["failures"]}
    assert {"restart", "SIGKILL", "demotion"} <= failed
    assert len(guard["slots"]["ok"]) == 200
    assert "all" in html.read_text()


def test_contender_that_is_none_is_refused() -> None:
    told = CliRunner().invoke(main, ["lab", "--only", "magic"])
    assert told.exit_code == 2
    assert "magic: it is one of nothing, pool_pre_ping" in told.stderr


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "NEEDED", ("no_such_library",))
    told = CliRunner().invoke(main, ["lab"])
    assert told.exit_code == 2
    assert "the lab needs no_such_library: pip install 'wsgi-dbguard[lab]'" in told.stderr
