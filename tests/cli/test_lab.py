"""`wsgi-dbguard lab`: the minute is played for real, and the guard's part of it is as promised."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsgi_dbguard.cli import lab, main
from wsgi_dbguard.lab.process import descendants, gone, wait_until


@pytest.mark.slow
def test_guard_answers_all_pages_of_a_minute_that_fails_others(tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    command = [sys.executable, "-m", "wsgi_dbguard", "lab", "--seconds", "15", "--only", "nothing", "--only", "guard"]
    done = subprocess.run([*command, "--html", html, "--json", "-"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    names = ["backends killed", "restart", "SIGKILL", "stopped", "blackhole", "demotion"]
    assert [fault["name"] for fault in figures["faults"]] == names
    guard, nothing = figures["contenders"]["guard"], figures["contenders"]["nothing"]
    assert (guard["pages"]["failed"], guard["pages"]["wrong"]) == (0, 0)
    assert (guard["orders"]["lost"], guard["orders"]["twice"]) == (0, 0)
    assert guard["pages"]["requests"] > 200
    assert guard["pages"]["held"] > 0
    failed = {failure["fault"] for failure in nothing["failures"]}
    assert {"restart", "SIGKILL", "demotion"} <= failed
    assert len(guard["slots"]["ok"]) == 150
    assert "all" in html.read_text()


@pytest.mark.slow
def test_interrupt_while_all_requests_hang_stops_and_removes_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wsgi_dbguard", "lab", "--seconds", "12", "--only", "nothing", "--only", "guard"]
    with (tmp_path / "output").open("w+") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        told = Path(output.name)
        try:
            wait_until(lambda: "stopped" in told.read_text(), timeout=120, what="the fault", interval=0.1)
            children = descendants(process.pid)
            process.send_signal(signal.SIGINT)
            # Clients wait for 15 s, and one after the other they would be waited for.
            assert process.wait(30) == 130, told.read_text()
        finally:
            process.kill()
        assert len(children) > 6
        wait_until(lambda: all(map(gone, children)), timeout=30, what=f"the end of {children}")
        assert "Traceback" not in told.read_text()


def test_contender_that_is_none_is_refused() -> None:
    told = CliRunner().invoke(main, ["lab", "--only", "magic"])
    assert told.exit_code == 2
    assert "magic: it is one of nothing, pool_pre_ping" in told.stderr


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_file_that_cannot_be_written_is_refused_before_the_minute(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("nowhere/report", "file/report"):
        told = CliRunner().invoke(main, ["lab", option, str(tmp_path / name), "--only", "nothing", "--seconds", "12"])
        assert told.exit_code == 2, told.output
        assert f"{name} cannot be written" in told.stderr


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "NEEDED", ("no_such_library",))
    told = CliRunner().invoke(main, ["lab"])
    assert told.exit_code == 2
    assert "the lab needs no_such_library: pip install 'wsgi-dbguard[lab]'" in told.stderr
