"""The gunicorn hooks: `compose` alone, then what gunicorn itself makes of a configuration with them."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.util import get_arity

from wsgi_dbguard import aborts, canceller
from wsgi_dbguard.hooks import gunicorn as hooks
from wsgi_dbguard.lab.process import Child, wait_until

GUNICORN = sysconfig.get_path("scripts") + "/gunicorn"
HOOKS = {"child_exit", "post_fork", "post_worker_init", "worker_abort"}
STAR = "from wsgi_dbguard.hooks.gunicorn import *\n"
# Each says who was called, and whether the guard had taken notice of the fork by then.
TELLING = """
import os
from wsgi_dbguard import fork
from wsgi_dbguard.hooks import gunicorn as dbguard

def tell(who):
    with open("told", "a") as told:
        told.write(f"{who} {fork.pid == os.getpid()}\\n")

def mine(server, worker):
    tell("mine")

def bad(server, worker):
    tell("bad")
    raise RuntimeError("of the user's own")

def later(server, worker):
    tell("later")

"""
# A worker that is told to stop before it listens to signals never does.
READY = """
def post_worker_init(worker):
    open(f"ready.{worker.pid}", "x").close()
"""
APPLICATION = """
import json, os
from wsgi_dbguard import fork

imported_by = os.getpid()

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"preloaded": imported_by != os.getpid(), "noticed": fork.pid == os.getpid()}).encode()]
"""


# compose


def recorder(calls: list[Any], name: str, error: Exception | None = None) -> Callable[[Any, Any], None]:
    def hook(server: Any, worker: Any) -> None:
        calls.append((name, server, worker))
        if error is not None:
            raise error

    return hook


def test_hooks_are_called_in_order_with_the_arguments() -> None:
    calls: list[Any] = []
    hooks.compose(recorder(calls, "a"), recorder(calls, "b"))("server", "worker")
    assert calls == [("a", "server", "worker"), ("b", "server", "worker")]


def test_a_raising_hook_skips_none_and_the_first_error_surfaces() -> None:
    calls: list[Any] = []
    first, second = ValueError("first"), ValueError("second")
    hook = hooks.compose(recorder(calls, "a", first), recorder(calls, "b", second), recorder(calls, "c"))
    with pytest.raises(ValueError, match="first") as caught:
        hook(1, 2)
    assert caught.value is first
    assert [name for name, *_ in calls] == ["a", "b", "c"]
    assert first.__notes__ == ["A later hook failed as well: ValueError('second')"]


def test_gunicorn_counts_the_arguments_of_what_is_composed() -> None:
    class Method:
        def hook(self, server: Any, worker: Any) -> None:
            pass

    def with_an_option(server: Any, worker: Any, *, loud: bool = False) -> None:
        pass

    for mine in (recorder([], "a"), Method().hook, with_an_option, lambda server, worker: None):
        for composed in (hooks.compose(mine, hooks.post_fork), hooks.compose(hooks.post_fork, mine)):
            assert get_arity(composed) == 2
            config = Config()
            config.set("post_fork", composed)
            assert config.post_fork is composed
    # for a hook of another arity too, and composed again
    assert get_arity(hooks.compose(lambda server: None)) == 1
    assert get_arity(hooks.compose(hooks.compose(hooks.post_fork), recorder([], "a"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one or more functions"),
        ((hooks.post_fork, None), "takes functions, not None"),
        ((hooks.post_fork, "package.module.hook"), "takes functions, not 'package.module.hook'"),
        ((hooks.post_fork, lambda server: None), "same number of arguments"),
        ((hooks.post_fork, lambda *args: None), "same number of arguments"),
        ((hooks.post_fork, dict.update), "cannot tell the arguments of <method 'update'"),
    ],
)
def test_misuse_of_compose_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        hooks.compose(*arguments)


# post_fork


def test_post_fork_notices_a_fork_that_python_did_not_see() -> None:
    code = """
import ctypes, os
from wsgi_dbguard import fork
from wsgi_dbguard.hooks.gunicorn import post_fork

child = ctypes.PyDLL(None).fork()
if child == 0:
    before = fork.pid == os.getpid()
    post_fork(None, None)
    os.write(1, repr((before, fork.pid == os.getpid())).encode())
    os._exit(0)
os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("(False, True)", "")


def test_the_star_import_brings_no_setting_but_hooks() -> None:
    namespace: dict[str, Any] = {}
    exec(STAR, namespace)
    assert {name for name in namespace if not name.startswith("__")} == {"compose", *HOOKS}
    assert set(namespace) & set(Config().settings) == HOOKS


# post_worker_init, worker_abort; what they are for is in tests/faults/test_deadline_servers.py


def test_the_hooks_of_a_workers_life_never_raise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*ignored: object) -> None:
        raise LookupError("broken")

    monkeypatch.setattr(aborts, "listen", broken)
    monkeypatch.setattr(canceller, "_aborted_at", float("-inf"))
    monkeypatch.setattr(canceller, "registry", None)
    hooks.post_worker_init(None)
    hooks.worker_abort(None)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_they_are_composed_with_the_users_own() -> None:
    calls: list[str] = []

    def mine(worker: Any) -> None:
        calls.append(worker)

    for name in ("post_worker_init", "worker_abort"):
        composed = hooks.compose(mine, getattr(hooks, name))
        config = Config()
        config.set(name, composed)
        assert get_arity(getattr(config, name)) == 1
    hooks.compose(mine, hooks.worker_abort)("worker")
    assert calls == ["worker"]


# gunicorn itself


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "wsgi.py").write_text(APPLICATION)
    return tmp_path


def configured(site: Path, text: str) -> subprocess.CompletedProcess[str]:
    (site / "gunicorn.conf.py").write_text(text)
    command = [GUNICORN, "--check-config", "--print-config", "wsgi"]
    return subprocess.run(
        command, cwd=site, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GUNICORN_", "PORT"))}
    return {**clean, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (STAR, "<post_fork()>"),
        ('post_fork = "wsgi_dbguard.hooks.gunicorn.post_fork"\n', "<post_fork()>"),
        (TELLING + "post_fork = dbguard.compose(mine, dbguard.post_fork)\n", "<compose.<locals>.run()>"),
    ],
    ids=["star", "string", "compose"],
)
def test_gunicorn_takes_the_hook(site: Path, text: str, shown: str) -> None:
    checked = configured(site, text)
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr == ""
    settings = dict(re.findall(r"^(\w+) += (.*)$", checked.stdout, re.MULTILINE))
    (site / "gunicorn.conf.py").write_text("")
    defaults = dict(re.findall(r"^(\w+) += (.*)$", configured(site, "").stdout, re.MULTILINE))
    assert settings["post_fork"] == shown
    assert defaults["post_fork"] != shown
    changed = {name for name, value in settings.items() if defaults[name] != value}
    assert changed == (HOOKS if text == STAR else {"post_fork"})


def test_gunicorn_refuses_a_composed_hook_of_another_arity(site: Path) -> None:
    checked = configured(site, STAR + "post_fork = compose(lambda server: None)\n")
    assert checked.returncode != 0
    assert "Value must have an arity of: 2" in checked.stderr


@pytest.fixture
def start(site: Path) -> Iterator[Callable[..., Child]]:
    """`start(configuration, *options)`: gunicorn in the site, until the end of the test."""
    with ExitStack() as children:

        def run(text: str, *options: str) -> Child:
            (site / "gunicorn.conf.py").write_text(text)
            command = [GUNICORN, "--bind=127.0.0.1:0", "--no-control-socket", "--workers=2", *options, "wsgi"]
            return children.enter_context(Child(command, log=site / "log", env=environment(), cwd=site))

        yield run


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (STAR, []),
        ('post_fork = "wsgi_dbguard.hooks.gunicorn.post_fork"\n', []),
        (TELLING + "post_fork = dbguard.compose(dbguard.post_fork, mine)\n", ["mine True", "mine True"]),
    ],
    ids=["star", "string", "compose"],
)
def test_every_worker_has_noticed_its_fork(
    start: Callable[..., Child], site: Path, text: str, told: list[str], preload: tuple[str, ...]
) -> None:
    server = start(text + READY, *preload)
    wait_until(lambda: len(list(site.glob("ready.*"))) == 2, timeout=60, what="both workers")
    found = wait_until(lambda: re.findall(r"at: http://([\d.]+:\d+)", server.output()), timeout=60, what="gunicorn")
    connection = http.client.HTTPConnection(found[0], timeout=60)
    connection.request("GET", "/")
    with connection.getresponse() as response:
        assert json.load(response) == {"preloaded": bool(preload), "noticed": True}
    connection.close()
    assert told == ((site / "told").read_text().splitlines() if told else [])


def test_a_raising_hook_of_the_users_stops_gunicorn_but_no_worker_goes_unprotected(
    start: Callable[..., Child], site: Path
) -> None:
    server = start(TELLING + "post_fork = dbguard.compose(bad, dbguard.post_fork, later)\n")
    assert server.wait(timeout=60) != 0
    assert "RuntimeError: of the user's own" in server.output()

    def told() -> list[str]:
        return (site / "told").read_text().splitlines()

    # The other worker may still be at it when gunicorn has given up.
    wait_until(lambda: told().count("bad True") == told().count("later True"), timeout=60, what="every hook")
    assert set(told()) == {"bad True", "later True"}
