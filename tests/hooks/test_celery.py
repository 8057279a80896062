"""Celery's prefork workers never use the connections of the process that forked them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import Child, wait_until

GUARD = """
import wsgi_dbguard.hooks.celery
from wsgi_dbguard import guard
"""
# The broker is a directory of files. Each process that loads this has used its pool: the worker's parent before it
# forks, and the client, whose connection is nobody's.
APPLICATION = """
import json, os, sys
from celery import Celery
from sqlalchemy import create_engine, text
{guard_imports}

site = os.path.dirname(os.path.abspath(__file__))
app = Celery("tasks", broker="filesystem://", backend=f"file://{{site}}/results")
app.conf.broker_transport_options = {{
    "data_folder_in": f"{{site}}/queue", "data_folder_out": f"{{site}}/queue", "control_folder": f"{{site}}/control",
}}
app.conf.worker_prefetch_multiplier = 1
engine = create_engine(os.environ["DATABASE"], pool_size=1, max_overflow=0)
{guard_call}
with engine.connect() as connection:
    parent = [os.getpid(), connection.scalar(text("SELECT pg_backend_pid()"))]

@app.task
def ask(number):
    with engine.connect() as connection:
        answer, backend = connection.execute(text("SELECT :n * 2, pg_backend_pid()"), {{"n": number}}).one()
    return {{"answer": answer, "process": os.getpid(), "backend": backend, "parent": parent}}

if __name__ == "__main__":
    asked = [ask.delay(number) for number in range(int(sys.argv[1]))]
    print(json.dumps([each.get(timeout=60) for each in asked]))
"""


# For the example in the place of its own: no broker runs here.
CONFIGURATION = """
import os
site = os.path.dirname(os.path.abspath(__file__))
broker_url, result_backend = "filesystem://", f"file://{site}/results"
broker_transport_options = {
    "data_folder_in": f"{site}/queue", "data_folder_out": f"{site}/queue", "control_folder": f"{site}/control",
}
"""
QUIET = ("--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat")


@dataclass
class Told:
    """What one task said."""

    answer: int
    process: int
    backend: int
    parent: tuple[int, int]  # process, backend


Ask = Callable[[int], list[Told]]


def a_worker(site: Path, environ: Mapping[str, str], *options: str) -> Child:
    """Of the module `tasks` in this directory, not started."""
    for name in ("queue", "control", "results"):
        (site / name).mkdir()
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", *QUIET, *options]
    return Child(command, log=site / "worker.log", env=environ, cwd=site)


def is_ready(worker: Child) -> bool:
    assert worker.running, worker.output()
    return " ready." in worker.output()


@pytest.fixture
def worker(tmp_path: Path, postgres: PostgreSQL) -> Iterator[Callable[..., Ask]]:
    """Starts a worker of two processes; what it gives asks that worker so many tasks at once."""
    environ = {**os.environ, "DATABASE": postgres.url()}

    def start(*options: str, guarded: bool) -> Ask:
        imports, call = (GUARD, "guard(engine)") if guarded else ("", "")
        (tmp_path / "tasks.py").write_text(APPLICATION.format(guard_imports=imports, guard_call=call))
        child = stack.enter_context(a_worker(tmp_path, environ, *options))
        stack.callback(child.kill)  # its orderly end takes five seconds
        wait_until(lambda: is_ready(child), timeout=60, what="the worker")

        def ask(count: int) -> list[Told]:
            client = [sys.executable, "tasks.py", str(count)]
            done = subprocess.run(client, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr + child.output(100)
            return [Told(**{**each, "parent": tuple(each["parent"])}) for each in json.loads(done.stdout)]

        return ask

    with ExitStack() as stack:
        yield start


@pytest.mark.slow
def test_without_the_guard_a_worker_uses_the_connection_of_its_parent(worker: Callable[..., Ask]) -> None:
    # One process only: with two the answers would get mixed up, or not, by chance.
    told = worker("--concurrency", "1", guarded=False)(3)
    assert all(each.process != each.parent[0] for each in told)
    assert {each.backend for each in told} == {told[0].parent[1]}


@pytest.mark.slow
def test_tasks_get_their_own_answers_and_the_parent_keeps_its_connection(
    worker: Callable[..., Ask], postgres: PostgreSQL
) -> None:
    told = worker("--concurrency", "2", "--max-tasks-per-child", "4", guarded=True)(20)
    assert [each.answer for each in told] == [2 * number for number in range(20)]
    processes = {each.process for each in told}
    assert len(processes) > 2  # they were replaced: ended with what they had inherited
    (parent,) = {each.parent for each in told}
    assert parent[0] not in processes
    assert parent[1] not in {each.backend for each in told}
    for process in processes:
        assert len({each.backend for each in told if each.process == process}) == 1
    assert postgres.query(f"SELECT state FROM pg_stat_activity WHERE pid = {parent[1]}") == [("idle",)]


@pytest.mark.slow
def test_tasks_of_the_example_get_over_connections_that_are_killed(postgres: PostgreSQL, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(deploy_directory() / "examples" / "celery", site)
    (site / "celeryconfig.py").write_text(CONFIGURATION)
    environ = {**os.environ, "DATABASE_URL": postgres.url(), "PGAPPNAME": "celery"}
    client = "import tasks; print([tasks.add_note.delay(str(n)).get(timeout=60) for n in range(6)])"

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=site, env=environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("import tasks; tasks.create_tables()")
    with a_worker(site, environ, "--concurrency", "1") as child:
        try:
            wait_until(lambda: is_ready(child), timeout=60, what="the worker")
            python(client)
            pids = [
                pid for (pid,) in postgres.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'celery'")
            ]
            assert len(pids) == 1  # one process, and none of its parent
            postgres.terminate(*pids)
            python(client)
        finally:
            child.kill()
    assert postgres.query("SELECT count(*) FROM celery_notes") == [(12,)]


def test_the_signal_of_a_new_worker_process_alone_cuts_the_parent_off() -> None:
    # As after a fork that Python does not see: no at-fork handler has run.
    code = """if True:
        import os
        from celery.signals import worker_process_init
        import wsgi_dbguard.hooks.celery
        from wsgi_dbguard import fork
        from wsgi_dbguard.process import here
        fork.pid, here[0] = os.getppid(), 0
        worker_process_init.send(sender=None)
        assert fork.pid == os.getpid() and here[0]
    """
    subprocess.run([sys.executable, "-c", code], check=True)
