"""Files of several processes: each has its own, the dead have no gauges, counters are carried on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from wsgi_dbguard.hooks import gunicorn
from wsgi_dbguard.metrics import slots

Start = Callable[[], tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def start(where: Path) -> Iterator[Start]:
    """`start()`: a process with a slot and a gauge in it, and the slot's number; it lives until it is killed."""
    program = """
import pathlib, sys
sys.path.append(sys.argv[2])  # alone, without SQLAlchemy, it is loaded sooner
from slots import Slot
where = pathlib.Path(sys.argv[1])
slot = Slot(where)
(where / f"gauge_livesum_{slot.name}.db").touch()
print(slot.number, flush=True)
sys.stdin.read()
"""
    with ExitStack() as stack:

        def run() -> tuple[subprocess.Popen[str], int]:
            command = [sys.executable, "-c", program, str(where), str(Path(slots.__file__).parent)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.__exit__, None, None, None)
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, int(process.stdout.readline())

        yield run


def gauges(where: Path) -> set[str]:
    return {each.name for each in where.glob("gauge_*")}


def test_each_living_process_has_a_number_of_its_own_and_the_dead_give_theirs_back(where: Path, start: Start) -> None:
    (first, zero), (_, one) = start(), start()
    assert (zero, one) == (0, 1)
    first.kill()
    first.wait()
    assert gauges(where) == {"gauge_livesum_dbguard-0.db", "gauge_livesum_dbguard-1.db"}
    slot = slots.Slot(where)
    assert slot.number == 0
    assert gauges(where) == {"gauge_livesum_dbguard-1.db"}
    assert start()[1] == 2
    slot.close()
    assert start()[1] == 0


def test_only_gauges_of_the_dead_are_removed(where: Path, start: Start) -> None:
    (first, _), _ = start(), start()
    mine = slots.Slot(where)
    others = {"gauge_livesum_12.db", "counter_dbguard-0.db", "gauge_all_dbguard-0.db"}
    for name in (f"gauge_livesum_{mine.name}.db", *others):
        (where / name).touch()
    first.kill()
    first.wait()
    for _ in range(2):
        slots.reap(where)
        kept = {"gauge_livesum_dbguard-1.db", "gauge_livesum_dbguard-2.db", "gauge_livesum_12.db"}
        assert gauges(where) == {*kept, "gauge_all_dbguard-0.db"}
    assert (where / "counter_dbguard-0.db").exists()
    # Looking has not given up its own: another one gets the next.
    assert start()[1] == 0
    assert start()[1] == 3
    mine.close()


def test_a_forked_child_has_none_and_its_parent_keeps_its_own(where: Path, start: Start) -> None:
    mine = slots.Slot(where)
    (where / f"gauge_livesum_{mine.name}.db").touch()
    child = os.fork()
    if not child:
        status = 1
        try:
            slots.reap(where)
            mine.close()
            status = slots.Slot(where).number - 1  # its parent has 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert gauges(where) == {"gauge_livesum_dbguard-0.db"}
    assert start()[1] == 1
    mine.close()


def test_who_looks_for_the_dead_and_who_takes_a_number_in_the_same_process_disturb_each_other_never(
    where: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, taken = slots._forget_gauges, []

    def interrupted(directory: Path, number: int) -> None:
        monkeypatch.undo()
        taken.append(slots.Slot(where))
        forget(directory, number)

    dead, _ = start()
    dead.kill()
    dead.wait()
    monkeypatch.setattr(slots, "_forget_gauges", interrupted)
    slots.reap(where)
    slots.reap(where)
    (mine,) = taken
    assert mine.number == 1
    assert [start()[1] for _ in range(2)] == [0, 2]  # it still has its lock
    mine.close()


def test_another_users_number_is_passed_over(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (where / "dbguard-0.lock").touch()
    really_open = os.open

    def refuse(path: Path, *arguments: int) -> int:
        if path.name in refused:
            raise PermissionError(path)
        return really_open(path, *arguments)

    refused = {"dbguard-0.lock"}
    monkeypatch.setattr(os, "open", refuse)
    slot = slots.Slot(where)
    assert slot.number == 1
    slot.close()
    (where / "gauge_livesum_dbguard-0.db").touch()
    slots.reap(where)
    assert gauges(where) == {"gauge_livesum_dbguard-0.db"}
    # A directory that may not be written is told.
    refused.add("dbguard-2.lock")
    held = slots.Slot(where)
    with pytest.raises(PermissionError):
        slots.Slot(where)
    held.close()


def test_gunicorns_child_exit_removes_the_gauges_of_that_worker_and_of_no_other(where: Path, start: Start) -> None:
    (first, _), _ = start(), start()
    first.kill()
    first.wait()
    for name in (f"gauge_liveall_{first.pid}.db", f"gauge_livesum_{first.pid}1.db", f"counter_{first.pid}.db"):
        (where / name).touch()
    gunicorn.child_exit(None, SimpleNamespace(pid=first.pid))
    assert gauges(where) == {f"gauge_livesum_{first.pid}1.db", "gauge_livesum_dbguard-1.db"}
    assert (where / f"counter_{first.pid}.db").exists()


def test_child_exit_never_raises_and_does_nothing_where_it_is_off(
    where: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gunicorn.child_exit(None, None)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    caplog.clear()
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    (where / "gauge_liveall_1.db").touch()
    gunicorn.child_exit(None, SimpleNamespace(pid=1))
    assert caplog.records == []
    assert gauges(where) == {"gauge_liveall_1.db"}


def test_the_hook_for_uwsgi_has_a_worker_remove_its_own_at_its_end(where: Path, run_python: Callable[..., str]) -> None:
    program = """
import pathlib, sys, types
fake = sys.modules["uwsgi"] = types.ModuleType("uwsgi")
fake.worker_id = lambda: 0
fake.atexit = lambda: print("the user's own")
import wsgi_dbguard.hooks.uwsgi
from wsgi_dbguard.metrics.slots import Slot
where = pathlib.Path(sys.argv[1])
slot = Slot(where)
(where / f"gauge_livesum_{slot.name}.db").touch()
fake.post_fork_hook()
print(len(list(where.glob("gauge_*"))))
fake.atexit()
print(len(list(where.glob("gauge_*"))))
"""
    assert run_python(program, str(where), PROMETHEUS_MULTIPROC_DIR=str(where)) == "1\nthe user's own\n0\n"
    untouched = "import sys, types; fake = sys.modules['uwsgi'] = types.ModuleType('uwsgi')\n"
    untouched += "import wsgi_dbguard.hooks.uwsgi; print(hasattr(fake, 'atexit'))"
    assert run_python(untouched, PROMETHEUS_MULTIPROC_DIR="") == "False\n"
