"""What people install holds the files that they copy, and the pages that they read."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from wsgi_dbguard.cli.config import deploy_directory

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_deploy_and_finds_them(tmp_path: Path, own_environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path)]
    isolated = importlib.util.find_spec("hatchling") is None
    if not isolated:
        command.append("--no-isolation")
    result = subprocess.run([*command, str(ROOT)], env=own_environment, capture_output=True, text=True, timeout=240)
    if result.returncode != 0 and isolated and "hatchling" in result.stdout + result.stderr:
        pytest.skip("hatchling is not installed and cannot be downloaded")
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("wsgi_dbguard/deploy/")}
        archive.extractall(tmp_path / "installed")
    pages = list((tmp_path / "installed" / "wsgi_dbguard" / "docs").iterdir())
    assert {page.name for page in pages} == {page.name for page in (ROOT / "wsgi_dbguard" / "docs").iterdir()}
    links = [page.parent / link for page in pages for link in re.findall(r"\]\(([^)#:]+)[#)]", page.read_text())]
    assert len(links) > len(pages)
    assert [link for link in links if not link.exists()] == []
    source = deploy_directory()
    files = {path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == {f"wsgi_dbguard/deploy/{path.relative_to(source).as_posix()}" for path in files}

    told = subprocess.run(
        [sys.executable, "-m", "wsgi_dbguard", "config", "uwsgi", "--path"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(told.stdout.strip()) == tmp_path / "installed" / "wsgi_dbguard" / "deploy" / "dbguard.ini"
