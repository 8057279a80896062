"""The files of deploy/ belong together: whoever waits for another waits longer than that one takes."""

from __future__ import annotations

import re

import pytest

from wsgi_dbguard.cli.config import deploy_directory


def setting(file: str, pattern: str) -> float:
    """The one number that `pattern` finds in a file of deploy/."""
    (value,) = re.findall(pattern, (deploy_directory() / file).read_text(), re.MULTILINE)
    return float(value)


@pytest.mark.parametrize(
    ("file", "pattern", "longer_file", "longer_pattern"),
    [
        pytest.param(
            "gunicorn.conf.py",
            r"^graceful_timeout = (\d+)",
            "systemd/wsgi-dbguard-gunicorn.service",
            r"^TimeoutStopSec=(\d+)",
            id="systemd kills gunicorn after its graceful_timeout",
        ),
        pytest.param(
            "uwsgi.ini",
            r"^worker-reload-mercy = (\d+)",
            "systemd/wsgi-dbguard-uwsgi.service",
            r"^TimeoutStopSec=(\d+)",
            id="systemd kills uWSGI after its mercy",
        ),
        pytest.param(
            "nginx/gunicorn.conf",
            r"^ *keepalive_timeout (\d+)s;",
            "gunicorn.conf.py",
            r"^keepalive = (\d+)",
            id="gunicorn closes a kept connection after nginx",
        ),
        pytest.param(
            "uwsgi.ini",
            r"^harakiri = (\d+)",
            "nginx/uwsgi.conf",
            r"uwsgi_read_timeout (\d+)s;",
            id="nginx gives a request up after harakiri",
        ),
    ],
)
def test_the_outer_timeout_is_longer(file: str, pattern: str, longer_file: str, longer_pattern: str) -> None:
    assert setting(file, pattern) < setting(longer_file, longer_pattern)
