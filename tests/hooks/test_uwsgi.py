"""The uWSGI hook on the real server: every process that uWSGI forks has noticed it before anybody's code runs there."""

from __future__ import annotations

import json
import os
import re
import signal
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from wsgi_dbguard.lab.process import Child, descendants, gone, wait_until

HOOK = "shared-import = wsgi_dbguard.hooks.uwsgi"

# Written to by everybody: who runs, in which process, and whether that process had noticed by then that it was forked.
TELL = """
import json, os
from wsgi_dbguard import fork

FILE = os.path.abspath("told")  # spoolers change the directory

def tell(who):
    line = json.dumps({"who": who, "pid": os.getpid(), "noticed": fork.pid == os.getpid()})
    with open(FILE, "a") as told:
        told.write(line + "\\n")

fork.on_fork(lambda: tell("the guard"))
"""
APPLICATION = """
import json, os, uwsgi
from sqlalchemy import create_engine
from tell import fork, tell
from wsgi_dbguard import DBGuard

tell("import of the application")

def report(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "noticed": fork.pid == os.getpid()}).encode()]

guarded = DBGuard(report, create_engine("sqlite://"))

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/guarded":
        return guarded(environ, start_response)
    if path == "/spool":
        import tasks
        tasks.task.spool(argument="1")
    if path == "/spool-plain":
        uwsgi.spool({b"argument": b"1"})
    if path == "/mule":
        import tasks
        tasks.job()
    if path == "/mule-message":
        uwsgi.mule_msg(b"message")
    return report(environ, start_response)
"""
# Where the application has uwsgidecorators for its tasks.
TASKS = """
import uwsgidecorators
from tell import tell

@uwsgidecorators.postfork
def after():
    tell("postfork")

@uwsgidecorators.spool
def task(arguments):
    tell("task " + arguments["argument"])

@uwsgidecorators.mulefunc
def job():
    tell("job")
"""
# It leaves messages to the other mule.
MULE = """
import signal
from tell import tell

tell("mule")
signal.pause()
"""
# A user's hooks, set without decorators by a module that was imported before ours.
STANDING = """
import uwsgi
from tell import tell

def after():
    tell("standing hook")
    raise RuntimeError("of the standing hook")

def spooler(arguments):
    tell("standing spooler " + arguments[b"argument"].decode())
    return uwsgi.SPOOL_OK

def message(text):
    tell("standing mule " + text.decode())

uwsgi.post_fork_hook, uwsgi.spooler, uwsgi.mule_msg_hook = after, spooler, message
"""


class Server:
    """uWSGI in a directory of its own, with what its processes told."""

    def __init__(self, child: Child, directory: Path) -> None:
        self.child = child
        self.directory = directory
        # http-socket with port 0: uWSGI says which one it was given
        found = self.wait(lambda: re.findall(r"bound to TCP address 127\.0\.0\.1:(\d+)", child.output()), "the port")
        self.port = int(found[0])

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        try:
            return wait_until(condition, timeout=60, what=what)
        except TimeoutError as error:
            error.add_note(f"{self.told()}\n{self.child.output()}")
            raise

    def get(self, path: str = "/") -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        with connection.getresponse() as response:
            answer: dict[str, Any] = json.load(response)
        connection.close()
        return answer

    def told(self) -> list[dict[str, Any]]:
        file = self.directory / "told"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def pids(self, who: str) -> set[int]:
        """The processes in which `who` ran."""
        return {line["pid"] for line in self.told() if line["who"] == who}

    def unprotected(self) -> list[dict[str, Any]]:
        """Who ran in a process that had not noticed its fork."""
        return [line for line in self.told() if not line["noticed"] and line["who"] != "the guard"]

    def command(self, letter: str) -> None:
        """Through the master's FIFO."""
        with (self.directory / "fifo").open("w") as fifo:
            fifo.write(letter)

    def workers(self) -> list[int]:
        """Pids of all workers that there ever were, in order."""
        return [
            int(pid)
            for pid in re.findall(r"(?:s|S|Res)pawned uWSGI worker \d+ \((?:new )?pid: (\d+)", self.child.output())
        ]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`serve(*lines of the ini)`: the server, until the end of the test, when no process of it may be left."""
    for name, text in [("tell", TELL), ("wsgi", APPLICATION), ("tasks", TASKS), ("mule", MULE), ("standing", STANDING)]:
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "spool").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UWSGI_")}
    with ExitStack() as stack:

        def start(*lines: str) -> Server:
            common = ["strict = true", "http-socket = 127.0.0.1:0", "pythonpath = .", "shared-import = tell"]
            (tmp_path / "server.ini").write_text("\n".join(["[uwsgi]", *common, *lines, ""]))
            child = Child(
                [sysconfig.get_path("scripts") + "/uwsgi", "--ini", "server.ini"],
                log=tmp_path / "log",
                env={**clean, "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=tmp_path,
                stop_signal=signal.SIGINT,  # uWSGI's SIGTERM may mean reload
            )
            stack.callback(_end, child)
            return Server(child, tmp_path)

        yield start


def _end(child: Child) -> None:
    """Stop it; and if that leaves any behind, as a server without a master does, those too, by their pids."""
    pids = descendants(child.pid)
    child.stop()
    for pid in pids:
        if not gone(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(map(gone, pids)), timeout=60, what=f"the end of {pids}")


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [False, True], ids=["prefork", "lazy-apps"])
def test_every_process_under_a_master_has_noticed_its_fork(serve: Callable[..., Server], lazy: bool) -> None:
    server = serve(
        HOOK,
        "master = true",
        "processes = 3",
        "cheaper = 1",
        "cheaper-initial = 1",
        "mule = mule.py",
        "mule = true",
        "spooler = spool",
        "spooler-import = tasks",
        "master-fifo = fifo",
        "module = wsgi",
        *(["lazy-apps = true"] if lazy else ["shared-import = tasks"]),
    )
    server.get()
    # respawned
    first = server.workers()[0]
    os.kill(first, signal.SIGKILL)
    server.wait(lambda: gone(first) and len(server.workers()) >= 2, "a respawned worker")
    server.get()
    # cheaper
    known = len(server.workers())
    server.command("+")
    server.wait(lambda: len(server.workers()) > known, "a worker more")
    # the spooler
    server.get("/spool")
    server.wait(lambda: server.pids("task 1"), "the spooler's task")
    # mules
    server.wait(lambda: server.pids("mule"), "the mule's script")
    if not lazy:
        server.get("/mule")
        server.wait(lambda: server.pids("job"), "the mule's function")
    # chain reload
    known = len(server.workers())
    server.command("c")
    server.wait(lambda: len(server.workers()) > known, "a reloaded worker")
    server.wait(lambda: "chain reloading complete" in server.child.output(), "the end of the chain")
    if lazy:  # a worker that is told to stop before it has loaded the application does not hear it
        server.wait(lambda: server.pids("import of the application") == set(server.workers()), "the workers")
    server.get()

    processes = [*server.workers(), *descendants(server.child.pid)]
    assert len(set(processes)) >= 7
    server.wait(lambda: server.pids("the guard") >= set(processes), "all of them")
    master = server.child.pid
    assert server.unprotected() == []
    assert master not in server.pids("the guard")
    for pid in processes:  # the guard first, and once
        assert [line["who"] for line in server.told() if line["pid"] == pid].count("the guard") == 1
        assert next(line["who"] for line in server.told() if line["pid"] == pid) == "the guard"
    if not lazy:
        assert server.pids("import of the application") == {master}
        server.wait(lambda: server.pids("postfork") == server.pids("the guard"), "the user's hook in all of them")


@pytest.mark.slow
def test_hooks_that_stood_before_are_kept_and_one_that_raises_skips_none(serve: Callable[..., Server]) -> None:
    server = serve(
        "shared-import = standing",
        HOOK,
        "shared-import = tasks",
        "master = true",
        "processes = 2",
        "mule = true",
        "spooler = spool",
        "module = wsgi",
    )
    server.get("/spool-plain")
    server.get("/mule-message")
    server.wait(lambda: server.pids("standing spooler 1"), "the standing spooler function")
    server.wait(lambda: server.pids("standing mule message"), "the standing mule function")
    server.wait(lambda: len(server.pids("postfork")) == 4, "two workers, a mule and a spooler")
    assert server.pids("standing hook") == server.pids("the guard") == server.pids("postfork")
    for pid in server.pids("postfork"):
        assert [line["who"] for line in server.told() if line["pid"] == pid][:3] == [
            "the guard",
            "standing hook",
            "postfork",
        ]
    assert server.unprotected() == []
    server.wait(lambda: "RuntimeError: of the standing hook" in server.child.output(), "the error in the log")


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [False, True], ids=["prefork", "lazy-apps"])
def test_without_a_master_forked_workers_have_noticed(serve: Callable[..., Server], lazy: bool) -> None:
    lines = ["lazy-apps = true"] if lazy else []
    server = serve(HOOK, "processes = 2", "module = wsgi", *lines)
    forked = server.wait(lambda: descendants(server.child.pid), "a second worker")
    server.wait(lambda: server.pids("the guard") == set(forked), "its notice")
    assert server.get()["noticed"]
    assert server.unprotected() == []
    assert server.child.pid not in server.pids("the guard")


@pytest.mark.slow
def test_without_the_hook_only_a_guarded_request_notices(serve: Callable[..., Server]) -> None:
    server = serve("master = true", "processes = 1", "module = wsgi")
    assert not server.get()["noticed"]
    assert server.pids("the guard") == set()
    answer = server.get("/guarded")
    assert answer["noticed"]
    assert server.pids("the guard") == {answer["pid"]}
