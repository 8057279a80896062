"""deploy/gunicorn.conf.py, what is gunicorn's alone."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from wsgi_dbguard.lab.process import Child, descendants, wait_until


def test_check_config_accepts_the_file(site: Path, environment: dict[str, str]) -> None:
    result = subprocess.run(
        ["gunicorn", "--check-config"], cwd=site, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_hooks_are_the_guards(site: Path, environment: dict[str, str]) -> None:
    result = subprocess.run(
        ["gunicorn", "--print-config"], cwd=site, env=environment, capture_output=True, text=True, timeout=120
    )
    assert re.search(r"^post_fork +: <post_fork\(\)>$|^post_fork += <post_fork\(\)>$", result.stdout, re.M)


def test_workers_come_from_web_concurrency(gunicorn: Callable[..., tuple[Child, str]]) -> None:
    server, _ = gunicorn(WEB_CONCURRENCY="3", workers=3)
    # One answers while the others are yet to come.
    wait_until(lambda: len(descendants(server.pid)) == 3, timeout=60, what="three workers")
    assert server.output().count("Booting worker") == 3
