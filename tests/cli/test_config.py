"""`wsgi-dbguard config`: the file that was asked for, or where it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import wsgi_dbguard
from wsgi_dbguard.cli import main
from wsgi_dbguard.cli.config import deploy_directory

CASES = {
    "gunicorn": "gunicorn.conf.py",
    "uwsgi": "dbguard.ini",
    "systemd": "systemd/wsgi-dbguard-gunicorn.service",
    "systemd --for uwsgi": "systemd/wsgi-dbguard-uwsgi.service",
    "nginx": "nginx/gunicorn.conf",
    "nginx --for uwsgi": "nginx/uwsgi.conf",
    "gunicorn --for gunicorn": "gunicorn.conf.py",
}


@pytest.mark.parametrize(("arguments", "name"), CASES.items())
def test_the_file_is_printed_as_it_is(arguments: str, name: str) -> None:
    result = CliRunner().invoke(main, ["config", *arguments.split()])
    assert result.exit_code == 0
    assert result.stdout == (deploy_directory() / name).read_text()


@pytest.mark.parametrize(("arguments", "name"), CASES.items())
def test_its_path_is_printed(arguments: str, name: str) -> None:
    result = CliRunner().invoke(main, ["config", *arguments.split(), "--path"])
    assert result.exit_code == 0
    assert Path(result.stdout.strip()) == deploy_directory() / name


def test_the_path_of_all_is_printed() -> None:
    result = CliRunner().invoke(main, ["config", "--path"])
    assert result.exit_code == 0
    assert Path(result.stdout.strip()) == deploy_directory()


@pytest.mark.parametrize(
    "arguments", ["apache", "gunicorn --for uwsgi", "uwsgi --for gunicorn", "", "--path --for uwsgi"]
)
def test_what_there_is_not_is_refused(arguments: str) -> None:
    result = CliRunner().invoke(main, ["config", *arguments.split()])
    assert result.exit_code == 2
    assert result.stdout == ""


def test_an_incomplete_installation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsgi_dbguard, "__file__", str(tmp_path / "wsgi_dbguard" / "__init__.py"))
    result = CliRunner().invoke(main, ["config", "gunicorn"])
    assert result.exit_code == 1
    assert "no deploy directory" in result.stderr


def test_the_start_imports_no_server_framework_or_lab() -> None:
    code = """
import sys
from wsgi_dbguard.cli import main
main(["config", "uwsgi"], standalone_mode=False)
print(sorted(sys.modules), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    for heavy in ("'flask", "'gunicorn", "'psycopg2", "'wsgi_dbguard.lab"):
        assert heavy not in result.stderr
