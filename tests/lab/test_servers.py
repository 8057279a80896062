"""Servers of the lab: guarded and unguarded differ in the guard alone, and nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from wsgi_dbguard.lab.process import descendants, gone
from wsgi_dbguard.lab.servers import Server, gunicorn, uwsgi

# Answers with the names of the modules of the guard that the process has loaded.
TELLING = """
import sys
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(name for name in sys.modules if name.startswith("wsgi_dbguard")).encode()]
"""


both = pytest.mark.parametrize("start", [gunicorn, uwsgi])


@both
@pytest.mark.parametrize("guarded", [True, False])
def test_guard_is_in_the_guarded_server_only(start: Callable[..., Server], guarded: bool, tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    with start("telling:application", guarded=guarded, directory=tmp_path, path=[tmp_path]) as server:
        with urlopen(server.ready(), timeout=60) as response:
            loaded = response.read().decode().split()
        pids = [server.child.pid, *descendants(server.child.pid)]
    assert bool(loaded) is guarded
    assert any(name.startswith("wsgi_dbguard.hooks.") for name in loaded) is guarded
    assert all(map(gone, pids))


@pytest.mark.slow
@both
def test_application_that_cannot_be_imported_is_told_at_once(start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('no application today')")
    with (
        start("broken:application", guarded=True, directory=tmp_path, path=[tmp_path]) as server,
        pytest.raises(RuntimeError, match="no application today"),
    ):
        server.ready()


def test_settings_of_the_caller_do_not_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--no-such-option")
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    with gunicorn("telling:application", guarded=False, directory=tmp_path, path=[tmp_path]) as server:
        server.ready()
        assert len(descendants(server.child.pid)) == 1


def test_configuration_without_the_guard_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("workers = 2\n")
    with pytest.raises(ValueError, match="no line"):
        gunicorn("telling:application", guarded=False, directory=tmp_path, path=[tmp_path], config=config)
