"""Starts the process that imports the application, waits for it, and puts together what it tells.

The application runs with its own environment and working directory, with nothing on stdin, in a session of its
own; it is killed at the end with all that it started. What it prints is kept, and is shown only if it fails.

Example::

    facts, secrets = look(Order(target="wsgi:application", server="gunicorn", file="gunicorn.conf.py"))
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from .ending import end, new_mark
from .facts import AppFacts, DatabaseFacts, Facts, ServerFacts, decode
from .secrets import Secrets, passwords_in

__all__ = ["CannotLook", "Order", "look"]

_SHOWN = 40  # lines of output, the last ones
_KEPT = 65536  # bytes of output, the last ones


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to look at. `server`: "gunicorn", "uwsgi" or ""; `timeout`: seconds for the import; `patience`: seconds for
    a database's answer."""

    target: str = ""
    server: str = ""
    file: str = ""
    database: bool = True
    timeout: float = 60.0
    patience: float = 10.0


class CannotLook(Exception):
    """Nothing could be found out. `output`: what the application has printed, without passwords."""

    def __init__(self, text: str, output: str = "") -> None:
        super().__init__(text)
        self.output = output


@dataclass
class _Told:
    """What has arrived so far."""

    secrets: Secrets
    step: str = "start"
    server: ServerFacts | None = None
    app: AppFacts | None = None
    databases: dict[int, DatabaseFacts] = field(default_factory=dict)
    failed: str = ""
    traceback: str = ""
    done: bool = False

    def take(self, what: str, content: Any) -> None:
        match what:
            case "secrets":
                self.secrets.add(*content)
            case "step":
                self.step = content
            case "server":
                self.server = decode(ServerFacts, content)
            case "app":
                self.app, self.step = decode(AppFacts, content), "database"
            case "database":
                facts = decode(DatabaseFacts, content)
                self.databases.setdefault(facts.engine, facts)
            case "failed":
                self.failed = content["text"]
            case "raised":
                self.step = content["step"]
                self.failed = content["error"]
                self.traceback = content["traceback"]
            case "done":
                self.done = True


def look(order: Order) -> tuple[Facts, Secrets]:
    """All that could be found out, and the passwords that are to be hidden in it and in what is made of it.

    Raises:
        CannotLook: the application could not be imported, or the server's configuration not be read.
    """
    told = _Told(Secrets(os.environ))
    told.secrets.add(*passwords_in(order.target))  # a factory's arguments may hold a URL
    with tempfile.TemporaryFile() as output:
        code = _run(order, told, output)
        printed = told.secrets.hide(_end(output)).strip()
    told.traceback = told.secrets.hide(told.traceback)  # in whole, not line by line
    if told.app is None:
        raise CannotLook(told.secrets.hide(_why(order, told, code)), "\n".join(_shown(told, printed)))
    facts = Facts(app=told.app, server=told.server, databases=[told.databases[each] for each in sorted(told.databases)])
    if not told.done:
        missing = [each.number for each in facts.app.engines if each.can_ask and each.number not in told.databases]
        for number in missing if order.database else ():
            facts.databases.append(DatabaseFacts(engine=number, error="the process that asked it has ended, or hangs"))
    facts.unseen += _unseen(order, facts)
    return facts, told.secrets


def _end(output: IO[bytes]) -> str:
    """What was printed last, in whole lines: half a password could not be found."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _KEPT))
    text = output.read().decode(errors="replace")
    return text if size <= _KEPT else text.partition("\n")[2]


def _run(order: Order, told: _Told, output: IO[bytes]) -> int | None:
    """Runs the process to its end, or to the end of its time; its exit code, None when it had to be killed."""
    with tempfile.TemporaryDirectory(prefix="wsgi-dbguard-") as directory:
        pipe = os.path.join(directory, "told")
        os.mkfifo(pipe)
        # For writing as well: so it has no end of file while nobody writes, and none of it is lost.
        reading = os.open(pipe, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _run_and_listen(order, told, output, pipe, reading)
        finally:
            os.close(reading)


def _run_and_listen(order: Order, told: _Told, output: IO[bytes], pipe: str, reading: int) -> int | None:
    mark = new_mark()
    arguments = [pipe, str(os.getpid()), json.dumps(asdict(order))]
    process = subprocess.Popen(
        # Unbuffered: what it has printed is wanted all the more when it is killed.
        # -P: what lies in the working directory is found when the server would find it, not earlier.
        [sys.executable, "-u", "-P", "-m", f"{__package__}.child", *arguments],
        env=os.environ | mark,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        # After its last words it ends by itself.
        if _listen(reading, process, order, told):
            with suppress(subprocess.TimeoutExpired):
                return process.wait(order.patience)
        return None
    finally:
        # What it has started outlives it. Not waited for before: until then nobody else gets its number.
        end(process.pid, mark)
        process.wait()


def _listen(reading: int, process: subprocess.Popen[bytes], order: Order, told: _Told) -> bool:
    """Until it has told all or has ended; False if its time is over before that."""
    deadline = time.monotonic() + order.timeout
    pending = b""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while not told.done:
        # Asked first: what it has written is there when it has ended.
        ended = process.poll() is not None
        if not poll.poll(min(200.0, max(0.0, 1000 * (deadline - time.monotonic())))):
            if ended:
                return True
            if time.monotonic() >= deadline:
                return False
            continue
        *lines, pending = (pending + os.read(reading, 65536)).split(b"\n")
        asking = told.step == "database"
        for line in lines:
            told.take(*json.loads(line))
        if told.step == "database" and not asking:
            deadline = time.monotonic() + 2 * order.patience + 5
    return True


def _why(order: Order, told: _Told, code: int | None) -> str:
    what = f"the {order.server} configuration {order.file}" if told.step == "configuration" else "the application"
    if told.step == "look":
        return f"the application is imported, and looking at it failed: {told.failed}"
    if told.traceback:
        if told.failed.startswith("SystemExit"):
            return f"{what} ends the process when it is {_verb(told)}: {told.failed}"
        return f"{what} cannot be {_verb(told)}: {told.failed.splitlines()[-1]}"
    if told.failed:
        return told.failed
    if code is None:
        return f"{what} was not {_verb(told)} within {order.timeout:g} s; --timeout SECONDS gives it more"
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"the process that imports {order.target or order.file} {ended}"


def _verb(told: _Told) -> str:
    return "read" if told.step == "configuration" else "imported"


def _shown(told: _Told, printed: str) -> list[str]:
    lines = printed.splitlines()
    if told.traceback and not told.failed.startswith("SystemExit"):
        lines += told.traceback.strip().splitlines()
    left_out = len(lines) - _SHOWN
    return [f"({left_out} lines left out)", *lines[-_SHOWN:]] if left_out > 0 else lines


def _unseen(order: Order, facts: Facts) -> list[str]:
    unseen = []
    if facts.server is None:
        unseen.append("how the application is served: give --gunicorn FILE or --uwsgi FILE")
    for engine in facts.app.engines:
        if engine.is_async:
            unseen.append(f"the server of {engine.url}: async drivers are not asked")
        elif engine.has_server and not engine.can_ask:
            unseen.append(f"the server of {engine.url}: only PostgreSQL, MariaDB and MySQL are asked")
        elif engine.has_server and not order.database:
            unseen.append(f"the server of {engine.url}: --no-database")
    return unseen
