"""The process that imports the application: ``python -m wsgi_dbguard.doctor.child``, started by `looking`.

It does what a server does, in the server's order: reads the configuration, imports the application; then it looks
around, and asks the databases. What it finds goes into a named pipe as lines of JSON, one for each step, so that what
was found is not lost when a later step hangs; passwords first, so that the other side can hide them in what the
application prints. The pipe is opened for each line: an application may close every descriptor that is open, and put
something of its own in its place. The application's output goes where the other side has put it.

It ends by `os._exit`: no exit handler of the application runs, and no thread of it is waited for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine

from wsgi_dbguard import guards

from . import database, gunicorn, ini, lines, loading, observing, uwsgi
from .ending import end_with_parent
from .facts import AppFacts, DatabaseFacts, encode
from .secrets import in_variable, passwords_in
from .watching import Watch

__all__ = ["main"]

_FAILED = 3  # exit code: what is wrong has been told


def main(arguments: list[str]) -> None:
    """`arguments`: the pipe to write to, the process that waits, and the order as JSON (see `looking`)."""
    pipe, order = arguments[0], json.loads(arguments[2])
    end_with_parent(int(arguments[1]))
    lock = threading.Lock()
    owner = os.getpid()

    def tell(what: str, content: Any) -> None:
        if os.getpid() == owner:  # not what the application forks
            with lock:
                _write(pipe, json.dumps([what, content]).encode() + b"\n")

    code = 0
    try:
        _run(order, tell)
    except (loading.TargetError, ini.IniError) as error:
        tell("failed", {"text": str(error)})
        code = _FAILED
    except Exception as error:  # of ours, or of what an application's objects do when they are looked at
        tell("raised", {"step": "look", "error": _summary(error), "traceback": _traceback(error)})
        code = _FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _write(pipe: str, line: bytes) -> None:
    descriptor = os.open(pipe, os.O_WRONLY | os.O_CLOEXEC)
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


def _run(order: dict[str, Any], tell: Callable[[str, Any], None]) -> None:
    watch = Watch(lambda *passwords: _tell_secrets(tell, passwords))
    secrets = {found for name, value in os.environ.items() for found in in_variable(name, value)}
    tell("secrets", sorted(secrets | passwords_in(str(order["target"]))))
    application, target = _load(order, tell)
    facts = observing.observe(application, target, watch)
    tell("app", encode(facts))
    if order["database"]:
        _ask(facts, observing.living_engines(watch), order["patience"], tell)
    tell("done", None)


def _tell_secrets(tell: Callable[[str, Any], None], passwords: tuple[object, ...]) -> None:
    known = [_text(each) for each in passwords if each]
    if known:
        tell("secrets", known)


def _text(password: object) -> str:
    return password.decode(errors="replace") if isinstance(password, bytes) else str(password)


def _load(order: dict[str, Any], tell: Callable[[str, Any], None]) -> tuple[Any, str]:
    step, target = "configuration", str(order["target"])
    tell("step", step)
    try:
        load: Callable[[], Any] = lambda: loading.load(target)  # noqa: E731
        if order["server"]:
            read = gunicorn.read if order["server"] == "gunicorn" else uwsgi.read
            server, load = read(order["file"], target)
            target = server.target
            tell("server", encode(server))
        else:
            sys.argv = ["wsgi-dbguard"]
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
        step = "import"
        tell("step", step)
        lines.belongs_to(target)
        return load(), target
    except (loading.TargetError, ini.IniError):
        raise
    except BaseException as error:
        # SystemExit and KeyboardInterrupt as well: they are no end of ours.
        tell("raised", {"step": step, "error": _summary(error), "traceback": _traceback(error)})
        os._exit(_FAILED)


def _summary(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _traceback(error: BaseException) -> str:
    """From the application's first line on, without the lines that led there from here."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__package__") in (__package__, "importlib"):
        frames = frames.tb_next
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _ask(app: AppFacts, engines: dict[int, Engine], patience: float, tell: Callable[[str, Any], None]) -> None:
    """All databases at once: one that does not answer costs `patience` seconds, however many there are."""
    for guard in guards.guards():  # it is not waited for, as a request would: whether it is away is the question
        guard.configure(replace(guard.config, hold=0.0))
    asked = []
    for engine in app.engines:
        if engine.can_ask:
            facts = DatabaseFacts(engine=engine.number)
            thread = threading.Thread(target=_ask_one, args=(engines[engine.number], facts), daemon=True)
            thread.start()
            asked.append((facts, thread))
    deadline = time.monotonic() + patience
    for facts, thread in asked:
        thread.join(max(0.0, deadline - time.monotonic()))
        # Some step behind its version may hang: what was told by then stands.
        if thread.is_alive() and not facts.version:
            facts.error = f"no answer within {patience:g} s"
        tell("database", encode(facts))


def _ask_one(engine: Engine, facts: DatabaseFacts) -> None:
    try:
        database.ask(engine, facts)
    except Exception as error:
        facts.error = _summary(getattr(error, "orig", None) or error)


if __name__ == "__main__":
    main(sys.argv[1:])
