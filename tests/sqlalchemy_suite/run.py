"""SQLAlchemy's own tests of pool, reconnect and execution, without the guard and with it: do the same ones pass?

They are taken from the source distribution of the very version that is installed, into a temporary directory, and run
on a private PostgreSQL of their own; on SQLite, which the guard leaves alone, where there is none to be had. Pools
without an engine are guarded too, see guard_every_pool.py. ::

    .ci/venv python tests/sqlalchemy_suite/run.py
    .ci/venv python tests/sqlalchemy_suite/run.py --driver psycopg

Exit code 0: the same passes; 1: not the same; 75: the source distribution cannot be had.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy

from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

HERE = Path(__file__).parent
FILES = ["test/engine/test_pool.py", "test/engine/test_reconnect.py", "test/engine/test_execute.py"]
CANNOT_DOWNLOAD = 75  # EX_TEMPFAIL of sysexits.h

# Meant: the test looks at what the guard does in another way. By name of the test.
# The guard's notes would not be better off in `record_info`: PoolTest.test_rec_info wants that to be empty, and a
# detached connection has none. Were SQLAlchemy's mark left on, it would replace connections before the guard sees them,
# which would be missing from the guard's counts then.
_OWN_MARKS = "looks at SQLAlchemy's wall-clock mark for a broken pool; the guard marks each connection instead"
DIFFERENT = {
    "PoolTest.test_info": "wants the `info` of a new connection to be empty; the guard keeps its notes there",
    "MockReconnectTest.test_invalidate_conn_w_contextmanager_disconnect": _OWN_MARKS,
    "HandleErrorTest.test_alter_invalidate_pool_stays_true": _OWN_MARKS,
}
Outcomes = dict[str, str]  # of a test: passed, skipped, failed


def download(directory: Path) -> Path | None:
    """The unpacked source distribution, or None."""
    requirement = f"sqlalchemy=={sqlalchemy.__version__}"
    only_source = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, *only_source, "--dest", directory, requirement]).returncode:
        return None
    archive = next(directory.glob("*.tar.gz"))
    subprocess.run(["tar", "-xzf", archive, "-C", directory], check=True)  # tarfile has its filter since Python 3.11.4
    return next(each for each in directory.iterdir() if each.is_dir())


def start(source: Path, report: Path, database: str | None, *, guarded: bool, only: str = "") -> subprocess.Popen[str]:
    """pytest in `source`, on the installed SQLAlchemy: -s keeps its conftest from taking the one beside it."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:timeout", "--junit-xml", str(report)]
    if database:
        options += ["--dburi", database]
    if guarded:
        options += ["-p", "guard_every_pool"]
    if only:
        options += ["-k", only]
    environ = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-s", "-m", "pytest", *options, *FILES]
    return subprocess.Popen(command, cwd=source, env=environ, text=True, stdout=subprocess.PIPE)


def outcomes(report: Path) -> Outcomes:
    """By "Class.test[parameters]"; the class without the driver that SQLAlchemy's plugin adds to its name."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        marks = {child.tag for child in case}
        outcome = "failed" if marks & {"failure", "error"} else "skipped" if "skipped" in marks else "passed"
        name = case.get("classname", "").rpartition(".")[2].partition("_")[0]
        found[f"{name}.{case.get('name')}"] = outcome
    return found


def databases(stack: ExitStack, driver: str) -> list[str | None]:
    """One for the run without the guard, one for the run with it."""
    urls: list[str | None] = []
    try:
        for _ in range(2):
            server = stack.enter_context(PostgreSQL(settings={"max_prepared_transactions": "10"}))
            server.query("create schema test_schema")
            urls.append(server.url(driver))
    except ServerMissing as missing:
        print(f"on SQLite only: {missing}")
        return [None, None]
    return urls


def compare(without: Outcomes, guarded: Outcomes) -> list[str]:
    """The tests that pass without the guard only, but for those that are meant to."""
    return [
        name
        for name, outcome in without.items()
        if outcome == "passed" and guarded.get(name) != "passed" and name not in DIFFERENT
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Prints counts and differences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--driver", default="psycopg2", help="for PostgreSQL, as in a URL; psycopg2 by default")
    driver = parser.parse_args(arguments).driver
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = download(directory)
        if source is None:
            print(f"no source distribution of SQLAlchemy {sqlalchemy.__version__} to be had")
            return CANNOT_DOWNLOAD
        urls = databases(stack, driver)
        reports = [directory / "without.xml", directory / "guarded.xml"]
        # Side by side: most of their time they sleep.
        runs = [
            stack.enter_context(start(source, report, url, guarded=guarded))
            for report, url, guarded in zip(reports, urls, (False, True), strict=True)
        ]
        logs = [run.communicate()[0] for run in runs]
        if not all(report.exists() for report in reports):
            print(*logs, sep="\n")
            return 1
        without, guarded = map(outcomes, reports)
        print(f"SQLAlchemy {sqlalchemy.__version__}, {driver if urls[0] else 'SQLite'}, {', '.join(FILES)}")
        print("without the guard:", dict(Counter(without.values())))
        print("with the guard:   ", dict(Counter(guarded.values())))
        print(next(line for line in logs[1].splitlines() if line.startswith("guarded checkouts: ")))
        for name, reason in DIFFERENT.items():
            if name in without:
                print(f"meant to differ: {name}: {reason}")
        stale = [name for name in DIFFERENT if without.get(name) == guarded.get(name) == "passed"]
        differences = compare(without, guarded)
        if differences:  # some of these tests race threads on purpose: once more, alone
            names = " or ".join({name.partition(".")[2].partition("[")[0] for name in differences})
            with start(source, reports[1], urls[1], guarded=True, only=names) as again:
                logs[1] = again.communicate()[0]
            guarded.update(outcomes(reports[1]))
            differences = compare(without, guarded)
    for name in differences:
        print("passes only without the guard:", name)
    for name in stale:
        print("is said to differ, but does not:", name)
    if differences:
        print(logs[1])
    return 1 if differences or stale else 0


if __name__ == "__main__":
    sys.exit(main())
