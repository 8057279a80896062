"""SQLAlchemy's own pool and reconnect tests pass with every pool guarded as they do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
CANNOT_DOWNLOAD = 75


@pytest.mark.slow
def test_sqlalchemys_own_pool_tests_pass_with_every_pool_guarded(own_environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, RUN], env=own_environment, capture_output=True, text=True)
    if done.returncode == CANNOT_DOWNLOAD:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    checkouts = done.stdout.partition("guarded checkouts: ")[2].split()[0]
    assert int(checkouts) > 1000
