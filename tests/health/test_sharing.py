"""Workers find each other's files, and those of the dead are gone, whichever way they died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsgi_dbguard import __version__
from wsgi_dbguard.health import sharing
from wsgi_dbguard.health.sharing import Share

WORKER = """
import os, sys
from wsgi_dbguard.health import sharing
sharing._owner = os.getppid  # as if it had been forked
share = sharing.Share()
share.write({"pid": os.getpid()})
print(os.getpid(), flush=True)
sys.stdin.read()
share.end()
"""
Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def where() -> Path:
    """What the children of this process share, and this process with them (conftest.py)."""
    base = Path("/dev/shm")
    return (base if os.access(base, os.W_OK) else Path(tempfile.gettempdir())) / sharing._name(os.getpid())


@pytest.fixture
def share() -> Iterator[Share]:
    """Of this process."""
    made = Share()
    made.write({"pid": os.getpid()})
    yield made
    made.end()


@pytest.fixture
def start() -> Iterator[Start]:
    started = []

    def start() -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def pids(share: Share) -> list[int]:
    return sorted(each["pid"] for each in share.others())


def test_each_finds_the_others_and_the_killed_are_gone(share: Share, start: Start) -> None:
    one, two = start(), start()
    assert pids(share) == sorted([one.pid, two.pid])
    one.send_signal(signal.SIGKILL)
    one.wait()
    assert pids(share) == [two.pid]
    two.communicate()
    assert pids(share) == []


def test_a_successor_has_its_number(share: Share, start: Start, where: Path) -> None:
    one = start()
    one.kill()
    one.wait()
    start()
    assert len(list(where.glob("*.lock"))) == 2


def test_only_this_user_can_read_it(share: Share, where: Path) -> None:
    assert where.stat().st_mode & 0o777 == 0o700


def test_the_last_one_removes_it(share: Share, start: Start, where: Path) -> None:
    child = start()
    share.end()
    assert where.exists()
    child.communicate()
    assert not where.exists()


def test_one_that_was_removed_is_made_anew(share: Share, where: Path) -> None:
    for file in where.iterdir():
        file.unlink()
    where.rmdir()
    share.write({"pid": 1})
    share.write({"pid": 2})
    (file,) = where.glob("live_*")
    assert json.loads(file.read_text())["pid"] == 2


def test_workers_of_another_version_are_not_understood(share: Share, start: Start, where: Path) -> None:
    child = start()
    (file,) = (each for each in where.glob("live_*") if json.loads(each.read_text())["pid"] == child.pid)
    file.write_text(file.read_text().replace(__version__, "0.0.0"))
    assert share.others() == []


def test_what_gone_servers_left_is_removed_by_the_next_one(
    share: Share, where: Path, start: Start, tmp_path: Path
) -> None:
    left = where.with_name(f"wsgi-dbguard-{os.geteuid()}-{os.getpid()}-1")  # another process had our number
    left.mkdir(0o700)
    (left / "live_dbguard-0.json").write_text("{}")
    (left / "dbguard-0.lock").touch()
    foreign = where.with_name(f"wsgi-dbguard-{os.geteuid()}-nothing-of-ours")
    foreign.mkdir()
    link = where.with_name(f"wsgi-dbguard-{os.geteuid()}-{os.getpid()}-2")
    link.symlink_to(tmp_path)
    (tmp_path / "live_dbguard-0.json").touch()
    (tmp_path / "dbguard-0.lock").touch()
    try:
        start()
        assert not left.exists()
        assert foreign.exists()
        assert (tmp_path / "live_dbguard-0.json").exists()
    finally:
        foreign.rmdir()
        link.unlink()


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_place_that_is_not_ours_alone_is_refused(
    kind: str, where: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "open":
        where.mkdir()
        where.chmod(0o777)
    elif kind == "link":
        tmp_path.chmod(0o700)
        where.symlink_to(tmp_path)
    else:
        where.touch()
    try:
        share = Share()
        share.write({"pid": 1})
        share.write({"pid": 1})
        assert share.others() == []
        assert list(tmp_path.iterdir()) == []
        (record,) = caplog.records
        assert "shows no other workers" in record.getMessage()
    finally:
        where.rmdir() if kind == "open" else where.unlink()


SERVER = """
import multiprocessing, os, sys
from wsgi_dbguard.health.sharing import _owner

def tell(name):
    print(name, int(_owner() == os.getppid()), flush=True)

if __name__ == "__main__":
    tell("server")
    child = os.fork()
    if child == 0:
        tell("forked")
        os._exit(0)
    os.waitpid(child, 0)
    other = multiprocessing.get_context("spawn").Process(target=tell, args=["spawned"])
    other.start()
    other.join()
"""


@pytest.mark.skipif(not Path("/proc/self/auxv").exists(), reason="this kernel does not tell")
def test_servers_of_one_script_are_not_each_others_workers(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    told = subprocess.run(
        [sys.executable, "server.py"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.split("\n") == ["server 0", "forked 1", "spawned 1", ""]


def test_where_it_is_not_told_the_job_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_layout", lambda pid: None)
    assert sharing._is_worker_of(os.getppid())


def test_a_child_of_a_worker_leaves_its_parents_file_alone(run_python: Callable[..., str]) -> None:
    program = """
import os
from wsgi_dbguard.health.sharing import Share
share = Share()
share.write({"pid": os.getpid()})
where = share._slot.where
child = os.fork()
if child == 0:
    share.close()
    share.end()
    os._exit(0)
os.waitpid(child, 0)
print(len(list(where.glob("live_*.json"))))
share.end()
"""
    assert run_python(program) == "1\n"
