"""Scenarios that fork, each in an interpreter of its own: what a forked child does to its parent must not hit the test.

A scenario is a function at the top of a test's file: ``scenario(forks, **arguments)``. `run` starts a fresh interpreter
that imports that file and calls it; what it returns comes back as JSON. A scenario may `ask` the test in between. A
hang, a crash or an exception anywhere is a result as well, ``{"failed": …}``, which no comparison mistakes for success.

The interpreter does not import this package: it runs this very file as a script, and it has only what the standard
library has. So a scenario shows what happens without the guard, until it calls `Forks.guard`; its file must not import
the package at its top either. Linux only, for pidfd_open.

Example::

    def every_way_to_hold_one(forks: Forks, url: str, guarded: bool) -> dict[str, list[str]]:
        if guarded:
            forks.guard()
        held = forks.hold(create_engine(url))
        child = forks.child(held.in_child)
        return {"child": child, "parent": held.in_parent()}

    run(every_way_to_hold_one, log=tmp_path / "log", url=url, guarded=False)
"""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from types import ModuleType

    from sqlalchemy import Engine

    from .inherited import SQL, Held

__all__ = ["By", "Forks", "Leave", "run"]

By = Literal["os.fork", "multiprocessing", "libc"]  # the last one is not seen by Python: no at-fork handler runs
Leave = Literal["end", "sys.exit", "os._exit"]  # "end": the script runs to its end


class _EndOfScript(BaseException):
    """Unwinds a child to the end of the script, through all `with` blocks of the scenario."""


class Forks:
    """What a scenario gets: children, and a line to the test."""

    def __init__(self) -> None:
        # What a scenario prints goes to the log.
        self._questions = os.dup(1)
        os.dup2(2, 1)

    def guard(self) -> None:
        """Import the package: its fork guard works from here on."""
        importlib.import_module("wsgi_dbguard")

    def engine(self, url: str, certificate: str | None = None, **options: Any) -> Engine:
        """`create_engine`, encrypted with any driver where there is a `certificate`."""
        engine: Engine = _inherited().engine_of(url, certificate, **options)
        return engine

    def sql(self, engine: Engine) -> SQL:
        """What differs between databases, for the one of `engine`."""
        sql: SQL = _inherited().sql_of(engine.dialect.name)
        return sql

    def hold(self, *engines: Engine) -> Held:
        """Check connections out of each engine, all of one database, in every way that there is, seven in all."""
        held: Held = _inherited().Held(self, engines)
        return held

    @staticmethod
    def failure(of: Callable[[], Any]) -> str | None:
        """The class name of what it raises, None when it returns."""
        try:
            of()
        except Exception as error:
            return type(error).__name__
        return None

    def wait(self, condition: Callable[[], Any], *, timeout: float = 60.0) -> None:
        """Return when `condition` is true. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:g} s in vain")
            time.sleep(0.005)

    def ask(self, question: str) -> Any:
        """What the test's `answer` function says, in JSON's types. Children may ask as well, one process at a time."""
        self.tell(ask=question)
        answer = _line(0, time.monotonic() + 60)
        if answer is None:
            raise EOFError(f"no answer to {question!r}")
        return json.loads(answer)

    def tell(self, **message: Any) -> None:
        os.write(self._questions, json.dumps(message).encode() + b"\n")

    def child(self, live: Callable[[], Any], *, by: By = "os.fork", leave: Leave = "end", timeout: float = 60.0) -> Any:
        """Fork, call `live` in the child, end the child; returns what `live` returned, in JSON's types.

        When `live` raised, the child ended with an error or was not gone after `timeout` seconds (it is killed then),
        returns ``{"failed": why}``. With multiprocessing `leave` means nothing: it is ``os._exit`` after its own
        clean-up.
        """
        deadline = time.monotonic() + timeout
        ours, theirs = os.pipe()

        def report() -> None:
            signal.alarm(round(timeout) + 10)  # not inherited; for when the parent is not there to kill it
            os.close(ours)
            os.write(theirs, json.dumps(_outcome(live)).encode() + b"\n")
            os.close(theirs)

        process = None
        if by == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=report)
            process.start()
            assert process.pid is not None
            pid = process.pid
        else:
            # PyDLL keeps the GIL: in the child nobody else is there to give it back.
            pid = os.fork() if by == "os.fork" else ctypes.PyDLL(None).fork()
            if not pid:
                report()
                _leave(leave)
        os.close(theirs)
        try:
            told = _line(ours, deadline)
            ended = _wait(pid, deadline)
        finally:
            os.close(ours)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        if process is not None:
            process.join()
            status = process.exitcode
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if not ended:
            return {"failed": f"the child hung, after it told {told!r}"}
        if status or told is None:
            return {"failed": f"the child ended with {status}, after it told {told!r}"}
        outcome = json.loads(told)
        return outcome.get("result", outcome)


def _outcome(live: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": live()}
    except Exception:
        return {"failed": traceback.format_exc()}


def _leave(leave: Leave) -> None:
    if leave == "os._exit":
        os._exit(0)
    raise _EndOfScript if leave == "end" else SystemExit(0)


def _line(fd: int, deadline: float) -> bytes | None:
    """One line, without its end; None when there is no whole one until the deadline or the end of file."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = bytearray()
    while not data.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        chunk = os.read(fd, 1)  # not one byte more: the next line is for the next call
        if not chunk:
            return None
        data += chunk
    return bytes(data[:-1])


def _wait(pid: int, deadline: float) -> bool:
    """Whether the process ends before the deadline; it is not reaped."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(fd)


def run(
    scenario: Callable[..., Any],
    *,
    log: Path,
    answer: Callable[[str], Any] | None = None,
    options: Sequence[str] = ("-X", "dev"),
    timeout: float = 180.0,
    **arguments: Any,
) -> Any:
    """Run `scenario` in an interpreter started with `options`, and return what it returned, in JSON's types.

    `answer` is called with what the scenario asks; `log` is the file its stderr goes to. All its processes are killed
    at the end, at the latest after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    call = [inspect.getfile(scenario), scenario.__name__, json.dumps(arguments), str(round(timeout))]
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, *options, "-P", __file__, *call],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    outcome: dict[str, Any] = {"failed": "it ended or hung before it told a result"}
    try:
        # The scenario itself may have been killed on purpose: a child can go on and tell the result.
        while (line := _line(process.stdout.fileno(), deadline)) is not None:
            outcome = json.loads(line)
            if "ask" not in outcome:
                break
            assert answer is not None
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(answer(outcome["ask"])).encode() + b"\n")
                process.stdin.flush()
            outcome = {"failed": f"it ended or hung after it asked {outcome['ask']!r}"}
        if "result" in outcome and not _wait(process.pid, deadline):
            outcome = {"failed": f"it hung at its end, after it told {outcome['result']!r}"}
    finally:
        # Before it is reaped: until then its process group cannot be somebody else's.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()
        status = process.wait()
    if "result" in outcome and status not in (0, -signal.SIGKILL):  # SIGKILL is its own doing: a hang was seen above
        outcome = {"failed": f"it ended with {status}, after it told {outcome['result']!r}"}
    return outcome.get("result", outcome)


def _load(name: str, path: str | Path) -> ModuleType:
    """The module in the file `path`, whatever package it is in."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _inherited() -> ModuleType:
    return sys.modules.get("inherited") or _load("inherited", Path(__file__).with_name("inherited.py"))


class _Decorations:
    """Stands for pytest while a scenario's file is imported, which takes a fifth of a second and is not needed there.

    Whatever is asked of it, it is that: a decorator that leaves nothing of what it decorates, or one of its arguments.
    """

    def __getattr__(self, name: str) -> _Decorations:
        return self

    def __call__(self, *arguments: object, **keywords: object) -> _Decorations:
        return self


def _main(path: str, name: str, arguments: str, timeout: str) -> None:
    signal.alarm(int(timeout) + 10)  # for when nobody is there to kill us
    forks = Forks()
    sys.modules["pytest"] = _Decorations()  # type: ignore[assignment]
    module = _load("scenario", path)
    del sys.modules["pytest"]
    given = json.loads(arguments)
    if "wsgi_dbguard" in sys.modules:
        raise ImportError(f"{path} imports the package, so nothing can be shown without it")
    forks.tell(**_outcome(lambda: getattr(module, name)(forks, **given)))


if __name__ == "__main__":
    with suppress(_EndOfScript):
        _main(*sys.argv[1:])
