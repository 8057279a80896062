"""What tests of several directories share."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from sqlalchemy import Engine, create_engine, text

from wsgi_dbguard import guards, registry
from wsgi_dbguard.lab.drivers import Driver
from wsgi_dbguard.lab.exchanges import Faults
from wsgi_dbguard.lab.forking import run
from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

Server = PostgreSQL | MariaDB

# PyMySQL reads the system's authorities anew for each connection, some 20 ms of CPU, and then asks none of them. Those
# that a test trusts it names; what downloads has `own_environment`.
_environment = dict(os.environ)
os.environ["SSL_CERT_FILE"] = os.devnull

# No limits of time, which a busy machine exceeds, and the same examples in each run.
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("steady")


# By how long they take, from two minutes down to one. xdist would begin with the files that have most tests, and these
# are not: at the end one process would be busy with one that is a single test, and no other with anything.
LONGEST = (
    "servers/test_recycling.py", "faults/test_matrix.py", "benchmarks/test_run.py", "faults/test_skipped_rollbacks.py",
    "sqlalchemy_suite/test_suite.py", "faults/test_deadline_servers.py", "faults/test_deadline_endings.py",
    "faults/test_deadline_pgbouncer.py", "faults/test_fork_letting_go.py", "faults/test_fork_hazards.py",
    "servers/test_frameworks.py", "faults/test_fork_unseen.py", "stories/test_s6_sent_twice.py",
    "faults/test_fork_wire.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist's
    # Ignored where a shell has started this in the background, and then by whatever a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the last ones to begin are short."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A private PostgreSQL, one for the whole run: tests that stop or break it start their own."""
    try:
        server = PostgreSQL()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A private MariaDB, one for the whole run, as `postgres`."""
    try:
        server = MariaDB()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[..., Server]]:
    """`server_of(driver)`, or `server_of(driver, tls=True)`: started at its first use, of one module alone.

    The test is skipped where the driver or the server is missing.
    """
    running: dict[tuple[str, bool], Server] = {}
    with ExitStack() as stack:

        def server(driver: Driver, *, tls: bool = False) -> Server:
            if missing := driver.missing():
                pytest.skip(missing)
            key = driver.database, tls
            if key not in running:
                try:
                    made: Server = PostgreSQL(tls=tls) if driver.database == "postgresql" else MariaDB(tls=tls)
                except ServerMissing as no_server:
                    pytest.skip(str(no_server))
                stack.enter_context(made)
                running[key] = made
            return running[key]

        yield server


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., Any]:
    """`wsgi_dbguard.lab.forking.run`; stderr goes to the file ``stderr`` in `tmp_path`."""
    return partial(run, log=tmp_path / "stderr")


@pytest.fixture(params=["psycopg2", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    """A driver's name in a SQLAlchemy URL."""
    return str(request.param)


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """`create_engine`, for engines that are disposed at the end of the test."""
    made: list[Engine] = []

    def make(url: Any, **options: Any) -> Engine:
        made.append(create_engine(url, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture
def rows(postgres: PostgreSQL) -> Iterator[Callable[[], list[str]]]:
    """The table ``noted``, and what is in it."""
    postgres.query("drop table if exists noted")
    postgres.query("create table noted (name text)")
    yield lambda: [name for (name,) in postgres.query("select name from noted order by name")]
    postgres.query("drop table noted")


@pytest.fixture
def faults(postgres: PostgreSQL) -> Faults:
    """Loses one connection in the middle of a request."""
    return Faults(postgres)


@pytest.fixture
def fill() -> Callable[[Engine, int], list[int]]:
    """Has `n` connections of an engine open at once and gives them back: the process ids of the servers behind them.

    In the order in which they lie in the pool then.
    """

    def fill(engine: Engine, n: int) -> list[int]:
        with ExitStack() as stack:
            connections = [stack.enter_context(engine.connect()) for _ in range(n)]
            # The stack closes the last one first.
            return [connection.scalar(text("select pg_backend_pid()")) or 0 for connection in reversed(connections)]

    return fill


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What was logged as a warning or worse: nothing, in the whole test."""
    caplog.set_level(logging.WARNING)
    yield
    assert [record.getMessage() for record in caplog.get_records("call")] == []


@pytest.fixture
def every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of ``DBGuard(app)`` or `guard_all`: engines of the tests before and after are not guarded."""
    gc.collect()
    monkeypatch.setattr(guards, "_everywhere", None)
    monkeypatch.setattr(registry, "_listeners", [])


@pytest.fixture
def own_environment() -> dict[str, str]:
    """The environment as the tests were given it, in which the system's authorities are known."""
    return _environment.copy()


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs a program in an interpreter of its own, with warnings as errors; what it printed, when it has succeeded."""

    def run(program: str, *arguments: str, **environment: str) -> str:
        # Unbuffered: a child that it forks is not to print once more what its parent had not written yet.
        command = [sys.executable, "-u", "-W", "error", "-c", program, *arguments]
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run
