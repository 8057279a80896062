"""Multiprocess mode in one process: what is written is right, whoever is interrupted, and harms no checkout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wsgi_dbguard.lab.postgres import PostgreSQL

RunPython = Callable[..., str]
Parse = Callable[[str], dict[str, float]]

SETUP = """
import faulthandler, gc, logging, os, sys, threading, warnings
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy import create_engine
from wsgi_dbguard import guard
from wsgi_dbguard.metrics import prometheus

faulthandler.dump_traceback_later(150, exit=True)
warnings.simplefilter("ignore")
logging.disable()
prometheus.install()
engine = create_engine(sys.argv[1], pool_size=20, max_overflow=100)
guard(engine)

def page():
    MultiProcessCollector(registry := CollectorRegistry())
    print(generate_latest(registry).decode())
"""


def test_a_process_reads_its_own_and_a_successor_carries_its_counters_on(
    run_python: RunPython, parse: Parse, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
for _ in range(3):
    engine.raw_connection().close()
kept = engine.raw_connection()
page()
"""
    )
    for turn in (1, 2):
        told = parse(run_python(program, postgres.url(), PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))
        assert told["wsgi_dbguard_checkouts_total"] == told["db_client_connection_wait_time_seconds_count"] == 4 * turn
        assert told["wsgi_dbguard_connects_total"] == told["db_client_connection_create_time_seconds_count"] == turn
        assert (told["db_client_connection_count used"], told["db_client_connection_count idle"]) == (1, 0)
    assert len(list(tmp_path.glob("*.lock"))) == 1


def test_dispose_leaves_counters_and_no_connections(
    run_python: RunPython, parse: Parse, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
for _ in range(3):
    engine.raw_connection().close()
engine.dispose()
page()
"""
    )
    told = parse(run_python(program, postgres.url(), PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))
    assert told["db_client_connection_count"] == 0
    assert told["wsgi_dbguard_checkouts_total"] == 3


@pytest.mark.slow
def test_connections_that_the_garbage_collector_gives_back_are_counted_and_block_nobody(
    run_python: RunPython, parse: Parse, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
from prometheus_client.mmap_dict import MmapedDict

class Circle:
    def __init__(self, connection):
        self.itself = self
        self.connection = connection

def collect_and_write(self, *arguments):
    gc.collect(1)
    write(self, *arguments)

# In the middle of what is locked, by prometheus-client for the application's metrics and by us for ours.
write, MmapedDict.write_value = MmapedDict.write_value, collect_and_write
mine = Counter("mine", "the application's own")

def work():
    for _ in range(50):
        Circle(engine.raw_connection())
        mine.inc()

gc.disable()
threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
gc.collect()
page()
"""
    )
    told = parse(run_python(program, postgres.url(), PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))
    assert told["wsgi_dbguard_checkouts_total"] == 200
    assert told["db_client_connection_use_time_seconds_count"] == 200
    assert told["mine_total"] == 200
    assert told["db_client_connection_count used"] == 0


@pytest.mark.slow
def test_children_that_are_forked_while_others_write_are_not_blocked(
    run_python: RunPython, parse: Parse, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
import signal, time
ended = threading.Event()
counts = [0] * 3

def work(number):
    while not ended.is_set():
        engine.raw_connection().close()
        counts[number] += 1

threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for each in threads: each.start()
# Not while they connect: a child that is forked in the middle of that may hang in libpq, without metrics as well.
while not all(counts):
    time.sleep(0.01)
for _ in range(20):
    child = os.fork()
    if not child:
        signal.alarm(60)
        engine.raw_connection().close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
ended.set()
for each in threads: each.join()
page()
print("counted", sum(counts))
"""
    )
    text, _, counted = run_python(program, postgres.url(), PROMETHEUS_MULTIPROC_DIR=str(tmp_path)).partition("counted ")
    assert parse(text)["wsgi_dbguard_checkouts_total"] == int(counted) + 20
    assert len(list(tmp_path.glob("*.lock"))) == 2


def test_another_engine_of_the_same_name_carries_the_counters_on_and_gauges_of_a_dropped_one_are_0(
    run_python: RunPython, parse: Parse, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
def use(engine):
    guard(engine)
    first, second = engine.raw_connection(), engine.raw_connection()
    first.close(), second.close()

for _ in range(3):
    del engine
    gc.collect()
    engine = create_engine(sys.argv[1])
    use(engine)
if sys.argv[2] == "drop":
    del engine
    gc.collect()
page()
"""
    )
    for turn, (what, connections) in enumerate([("drop", 0), ("keep", 2)], 1):
        told = parse(run_python(program, postgres.url(), what, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))
        assert told["wsgi_dbguard_checkouts_total"] == told["db_client_connection_wait_time_seconds_count"] == 6 * turn
        assert told["wsgi_dbguard_connects_total"] == 6 * turn
        assert told["db_client_connection_count idle"] == told["db_client_connection_count"] == connections
        assert told["db_client_connection_idle_max"] == 5 * bool(connections)


def test_a_checkout_looks_at_its_own_pool_only(run_python: RunPython, postgres: PostgreSQL, tmp_path: Path) -> None:
    program = (
        SETUP
        + """
from wsgi_dbguard.pool import PoolGuard
engines = [create_engine(sys.argv[1]) for _ in range(3)]
for each in engines:
    guard(each)
    each.raw_connection().close()
asked = set()
stats, PoolGuard.stats = PoolGuard.stats, lambda self: (asked.add(self), stats(self))[1]
engines[1].raw_connection().close()
engines[1].dispose()
print(asked == {guard(engines[1])}, len(guard(engines[0]).links()))
"""
    )
    assert run_python(program, postgres.url(), PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == "True 1\n"


def test_a_full_filesystem_costs_no_checkout_and_one_warning(
    run_python: RunPython, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
import errno
logging.disable(logging.NOTSET)
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s")
allocated = []
allocate = os.posix_fallocate

def full(descriptor, start, length):
    allocated.append(length)
    if len(allocated) > int(sys.argv[2]):
        raise OSError(errno.ENOSPC, "full")
    allocate(descriptor, start, length)

os.posix_fallocate = full
for _ in range(3):
    engine.raw_connection().close()
engines = [create_engine(sys.argv[1], pool_logging_name=f"{number:04}" * 100) for number in range(int(sys.argv[3]))]
for each in engines:
    guard(each)
    each.raw_connection().close()
files = os.listdir(sys.argv[4])
print(guard(engine).stats()["checkouts"], [each for each in files if each.endswith(".new") or "gauge" in each])
"""
    )
    # New files, and one that is to become longer.
    for rooms, engines in ((0, 0), (1, 0), (3, 10)):
        directory = tmp_path / str(rooms)
        directory.mkdir()
        arguments = (postgres.url(), str(rooms), str(engines), str(directory))
        told = run_python(program, *arguments, PROMETHEUS_MULTIPROC_DIR=str(directory))
        assert told == "WARNING wsgi_dbguard.metrics.prometheus\n3 []\n"


def test_files_that_are_longer_than_one_room_are_read_and_carried_on(
    run_python: RunPython, parse: Parse, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
for number in range(10):
    engine = create_engine(sys.argv[1], pool_logging_name=f"{number:04}" * 100)
    guard(engine)
    engine.raw_connection().close()
page()
"""
    )
    for turn in (1, 2):
        told = parse(run_python(program, postgres.url(), PROMETHEUS_MULTIPROC_DIR=str(tmp_path)))
        assert told["wsgi_dbguard_checkouts_total"] == 10 * turn
    for each in tmp_path.glob("*.db"):
        assert each.stat().st_blocks * 512 >= each.stat().st_size  # no holes
    assert max(each.stat().st_size for each in tmp_path.glob("*.db")) > 1 << 16


def test_a_page_is_told_beside_a_file_that_has_no_size_yet(
    run_python: RunPython, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
engine.raw_connection().close()
open(os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/counter_1.db", "w").close()
page = prometheus.application({"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": ""}, lambda *answer: None)
print(b"wsgi_dbguard_checkouts_total" in b"".join(page))
"""
    )
    assert run_python(program, postgres.url(), PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == "True\n"


def test_a_directory_that_is_gone_costs_no_checkout(
    run_python: RunPython, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
import shutil
shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
for _ in range(3):
    engine.raw_connection().close()
print(guard(engine).stats()["checkouts"])
"""
    )
    directory = tmp_path / "gone"
    directory.mkdir()
    assert run_python(program, postgres.url(), PROMETHEUS_MULTIPROC_DIR=str(directory)) == "3\n"


def test_a_directory_that_may_not_be_written_is_told_once_and_by_name(
    run_python: RunPython, postgres: PostgreSQL, tmp_path: Path
) -> None:
    program = (
        SETUP
        + """
logging.disable(logging.NOTSET)
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
opened = os.open

def refused(path, *arguments, **keywords):
    if str(path).startswith(sys.argv[2]):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *arguments, **keywords)

os.open = refused  # who runs the tests may be root
for _ in range(3):
    engine.raw_connection().close()
"""
    )
    told = run_python(program, postgres.url(), str(tmp_path), PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert told.startswith("WARNING metrics of this process are not written any more: [Errno 13] Permission denied")
    assert told.endswith(f"'{tmp_path / 'dbguard-0.lock'}'\n")
    assert told.count("\n") == 1


def test_engines_that_the_end_of_the_interpreter_collects_write_nothing(run_python: RunPython, tmp_path: Path) -> None:
    program = SETUP + "logging.disable(logging.NOTSET)"
    url = "postgresql+psycopg2://nobody@127.0.0.1:1/none"
    assert run_python(program, url, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_told_at_once(run_python: RunPython, tmp_path: Path) -> None:
    program = """
from wsgi_dbguard.metrics import prometheus
try:
    prometheus.install()
except NotADirectoryError as error:
    print(error)
"""
    told = run_python(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "missing"))
    assert told == f"PROMETHEUS_MULTIPROC_DIR={tmp_path}/missing: make this directory before the server starts\n"
