"""The command line as a whole: one module is one command."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsgi_dbguard.cli import main

SCRIPT = str(Path(sysconfig.get_path("scripts")) / "wsgi-dbguard")


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "wsgi_dbguard"]])
def test_the_version_is_told(command: list[str]) -> None:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=180)
    assert result.stdout == f"wsgi-dbguard, version {version('wsgi-dbguard')}\n"


def test_every_command_is_in_the_help_and_has_its_own() -> None:
    told = CliRunner().invoke(main, ["--help"])
    assert told.exit_code == 0
    names = main.list_commands(main.make_context("wsgi-dbguard", ["config", "uwsgi"]))
    assert "config" in names
    for name in names:
        assert name in told.stdout
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["nonsense"])
    assert result.exit_code == 2
    assert "No such command 'nonsense'" in result.stderr


@pytest.mark.parametrize("command", ["demo", "lab", "doctor", "watch"])
def test_nan_is_no_number_of_seconds(command: str) -> None:
    option = {"doctor": "--timeout"}.get(command, "--seconds")
    told = CliRunner().invoke(main, [command, option, "nan", *(["x"] if command in ("doctor", "watch") else [])])
    assert told.exit_code == 2
    assert "is no number of seconds" in told.output
