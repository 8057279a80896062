"""The server's configuration, read as the server reads it. In this process: what reading changes is put back."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from gunicorn import config as gunicorn_config

from wsgi_dbguard.doctor import CannotLook, gunicorn, uwsgi
from wsgi_dbguard.doctor.ini import IniError
from wsgi_dbguard.doctor.loading import TargetError

from .conftest import Examine

BARE = "def application(environ, start_response): ...\napp = application\n"
INSIDE = f"import os\nassert os.environ['SHOP'] == 'open'\n{BARE}"
numbers = itertools.count()


@pytest.fixture(autouse=True)
def put_back(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is the site's matter."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delitem(sys.modules, gunicorn.HOOKS, raising=False)
    monkeypatch.delitem(sys.modules, "__config__", raising=False)
    for name in ("uwsgi", "uwsgidecorators"):
        monkeypatch.setitem(sys.modules, name, None)  # noted, and put back as it was
        monkeypatch.delitem(sys.modules, name)
    # Where gunicorn was imported; in a process of its own that is here.
    monkeypatch.setattr(gunicorn_config.Chdir, "default", str(site))


@pytest.fixture
def inside(site: Path) -> str:
    """The name of a module and of a .wsgi file, in the directory "elsewhere", that no other test has had."""
    name = f"inside_{next(numbers)}"
    (site / "elsewhere").mkdir()
    for ending in (".py", ".wsgi"):
        (site / "elsewhere" / f"{name}{ending}").write_text(INSIDE)
    return name


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("", "", {"processes": 1, "threads": 1, "timeout": 30.0, "preloads": False, "hooks": False}),
        (
            "from wsgi_dbguard.hooks.gunicorn import *\nworkers = 3\nthreads = 5\npreload_app = True",
            "",
            {"processes": 3, "threads": 5, "worker": "gthread", "timeout": None, "preloads": True, "hooks": True},
        ),
        ("workers = 3", "--workers 7 --timeout 5", {"processes": 7, "timeout": 5.0}),
        ("timeout = 0", "", {"timeout": None}),
        ("worker_class = 'gevent'\nworker_connections = 50", "", {"threads": 50, "timeout": None}),
    ],
)
def test_gunicorn(
    text: str, arguments: str, expected: dict[str, Any], site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    (site / "some.conf.py").write_text(text)
    server, _ = gunicorn.read("some.conf.py", "wsgi")
    assert {name: getattr(server, name) for name in expected} == expected


def test_gunicorn_names_the_application_and_its_environment(site: Path, inside: str) -> None:
    text = f'wsgi_app = "{inside}:app"\nraw_env = ["SHOP=open"]\nchdir = "elsewhere"\n'
    (site / "some.conf.py").write_text(text)
    server, load = gunicorn.read("some.conf.py", "")
    assert server.target == f"{inside}:app"
    assert load().__module__ == inside


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("workers = 'many'", "Invalid value for workers"),
        ("", "No application module specified"),
    ],
)
def test_what_gunicorn_refuses_is_told_in_its_words(
    text: str, shown: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "some.conf.py").write_text(text)
    with pytest.raises(SystemExit):
        gunicorn.read("some.conf.py", "")
    assert shown in capsys.readouterr().err


def test_a_refused_configuration_is_told_as_such(site: Path, look: Examine) -> None:
    (site / "gunicorn.conf.py").write_text("workers = 'many'")
    with pytest.raises(CannotLook) as error:
        look("wsgi")
    assert "the gunicorn configuration gunicorn.conf.py ends the process when it is read" in str(error.value)
    assert "Invalid value for workers" in error.value.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"processes": 1, "threads": 1, "preloads": False, "timeout": None, "enable_threads": None}),
        ("master = true", {"preloads": True}),
        (
            "workers = 4\nthreads = 2\nt = 20",
            {"processes": 4, "threads": 2, "preloads": True, "timeout": 20.0, "enable_threads": True},
        ),
        ("processes = 4\nlazy-apps = true\nenable-threads = no", {"preloads": False, "enable_threads": False}),
        ("processes = 2\nlazy-apps = false\ngevent = 50", {"preloads": True, "threads": 50, "hooks": False}),
        ("master =\nini = exec://wsgi-dbguard config uwsgi", {"hooks": True, "preloads": False}),
        ("master = 1\nimport = wsgi_dbguard.hooks.uwsgi", {"hooks": False, "preloads": True}),
    ],
)
def test_uwsgi(text: str, expected: dict[str, Any], site: Path) -> None:
    (site / "some.ini").write_text(f"[uwsgi]\nmodule = wsgi\n{text}\n")
    server, _ = uwsgi.read("some.ini", "")
    assert {name: getattr(server, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("module = {}:app", "{}:app"),
        ("wsgi = {}\ncallable = app", "{}:app"),
        ("wsgi-file = {}.py", "{}.py"),
        ("wsgi-file = {}.wsgi", "./{}.wsgi"),
        ("wsgi-file = ../elsewhere/{}.wsgi\ncallable = app", "../elsewhere/{}.wsgi:app"),
        ("mount = /shop={}:app", "{}:app"),
    ],
)
def test_uwsgi_names_the_application_and_its_environment(text: str, target: str, site: Path, inside: str) -> None:
    (site / "some.ini").write_text(f"[uwsgi]\nchdir = %delsewhere\nenv = SHOP=open\n{text.format(inside)}\n")
    server, load = uwsgi.read("some.ini", "")
    assert server.target == target.format(inside)
    assert load().__module__ == inside


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("processes = many", IniError, "processes = many: that is no number"),
        ("chdir = /nowhere/at/all\nmodule = wsgi", IniError, "chdir = /nowhere/at/all: No such file"),
        ("", TargetError, "names no module"),
        ("ini-paste = shop.ini", TargetError, "Paste configurations are not read here"),
    ],
)
def test_what_is_wrong_with_an_ini_is_told(text: str, error: type[Exception], told: str, site: Path) -> None:
    (site / "some.ini").write_text(f"[uwsgi]\n{text}\n")
    with pytest.raises(error, match=told):
        uwsgi.read("some.ini", "")


def test_an_ini_that_is_not_understood_is_told(site: Path, look: Examine) -> None:
    (site / "uwsgi.ini").write_text("[uwsgi]\nfor = a\nendfor =\n")
    with pytest.raises(CannotLook, match=r"loops \(for\) are not read here"):
        look()
