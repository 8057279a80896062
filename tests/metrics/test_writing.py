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
