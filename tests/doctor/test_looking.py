"""Applications that cannot be looked at, and what of them is told; passwords never are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from wsgi_dbguard.cli import main
from wsgi_dbguard.doctor import CannotLook
from wsgi_dbguard.lab.process import gone, wait_until

from .conftest import Examine

BARE = "def application(environ, start_response): ...\n"
PASSWORD = "hunter2-and-more"
UNREACHABLE = f"""
from sqlalchemy import create_engine
engine = create_engine("postgresql+psycopg2://app:{PASSWORD}@127.0.0.1:1/app?sslpassword=other-{PASSWORD}")
{BARE}
"""


@pytest.fixture
def doctor(site: Path) -> Callable[..., Result]:
    """`doctor(*arguments)`: the command, in the site."""
    return lambda *arguments: CliRunner().invoke(main, ["doctor", *arguments])


@pytest.mark.parametrize(
    ("source", "told", "shown"),
    [
        ("print('on ' + 'my way')\n1 / 0\n", "the application cannot be imported: ZeroDivisionError", "on my way"),
        ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError: No module named", "wsgi.py"),
        ("import sys\nprint('bye')\nsys.exit(4)", "ends the process when it is imported: SystemExit: 4", "bye"),
        ("import os\nos.write(1, b'bye')\nos._exit(4)", "ended with exit code 4", "bye"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9", ""),
        ("application = 3", "is of type int, not a WSGI application", ""),
    ],
)
def test_an_import_that_fails_is_told_with_what_was_printed(
    source: str, told: str, shown: str, site: Path, look: Examine
) -> None:
    (site / "wsgi.py").write_text(source)
    with pytest.raises(CannotLook) as error:
        look("wsgi")
    assert told in str(error.value)
    assert shown in error.value.output
    assert "wsgi_dbguard" not in error.value.output


def test_an_import_that_hangs_is_given_up_with_all_that_it_has_started(site: Path, look: Examine) -> None:
    source = "import os, subprocess, time\nprint('started', subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
    (site / "wsgi.py").write_text(f"{source}time.sleep(600)\n")
    with pytest.raises(CannotLook) as error:
        look("wsgi", timeout=3.0)
    assert "the application was not imported within 3 s" in str(error.value)
    # On a machine that is busy it may not have come so far.
    for pid in error.value.output.split()[1:]:
        wait_until(lambda pid=int(pid): gone(pid), timeout=60, what="the end of what it started")  # type: ignore[misc]


STARTS = """
import os, subprocess, sys, time
def start(**options):
    return subprocess.Popen(["sleep", "600"], start_new_session=True, **options).pid
open("pids.part", "w").write(f"{os.getpid()} {start()} {start(env={})}")
os.rename("pids.part", "pids")
time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_doctor_is_stopped(end: signal.Signals, site: Path) -> None:
    (site / "wsgi.py").write_text(STARTS)
    doctor = subprocess.Popen([sys.executable, "-m", "wsgi_dbguard", "doctor", "wsgi"])
    pids: list[int] = []
    try:
        wait_until((site / "pids").exists, timeout=60, what="the import")
        pids = [int(each) for each in (site / "pids").read_text().split()]
        doctor.send_signal(end)
        assert doctor.wait(60) == (143 if end == signal.SIGTERM else -end)
        # Killed, it cannot look for what the application has started; only the application itself is ended then.
        for pid in pids if end == signal.SIGTERM else pids[:1]:
            wait_until(lambda pid=pid: gone(pid), timeout=60, what="the end")  # type: ignore[misc]
    finally:
        doctor.kill()
        doctor.wait()
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_session_of_its_own_does_not_save_what_the_application_starts(site: Path, look: Examine) -> None:
    source = "import subprocess\npid = subprocess.Popen(['sleep', '600'], start_new_session=True).pid\n"
    (site / "wsgi.py").write_text(f"{source}open('pid', 'w').write(str(pid))\n{BARE}")
    look("wsgi")
    wait_until(lambda: gone(int((site / "pid").read_text())), timeout=60, what="the end of what it started")


def test_a_configuration_of_the_name_of_a_library_is_no_library(site: Path, look: Examine) -> None:
    (site / "gunicorn.py").write_text("wsgi_app = 'wsgi'\nworkers = 3\n")
    (site / "wsgi.py").write_text(BARE)
    facts, _ = look(server="gunicorn", file="gunicorn.py")
    assert facts.server is not None
    assert facts.server.processes == 3


def test_an_output_that_is_not_utf_8_is_no_trouble(site: Path) -> None:
    source = UNREACHABLE.replace("engine = create_engine(", 'engine = create_engine(isolation_level="AUTOCOMMIT", url=')
    (site / "wsgi.py").write_text(f'{source}\n# …\nsession = __import__("sqlalchemy.orm").orm.Session(engine)\n')
    command = [sys.executable, "-m", "wsgi_dbguard", "doctor", "wsgi", "--no-database"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, timeout=120)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_application_that_prints_and_leaves_threads_behind_is_no_trouble(
    site: Path, doctor: Callable[..., Result]
) -> None:
    source = "import threading, time\nprint('x' * 100000)\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    (site / "wsgi.py").write_text(source + BARE)
    result = doctor("wsgi", "--json")
    report = json.loads(result.stdout)
    assert [each["id"] for each in report["findings"]] == ["DBG-APP-engines"]
    assert len(report["facts"]["app"]["threads"]) == 1
    assert result.stderr == ""
    assert result.exit_code == 0


def test_an_application_that_closes_every_descriptor_is_looked_at(site: Path, look: Examine) -> None:
    source = "import os\nos.closerange(3, 4096)\nkept = [open(os.devnull, 'w') for _ in range(64)]\n"
    (site / "wsgi.py").write_text(source + BARE)
    _, findings = look("wsgi")
    assert [each.kind.id for each in findings] == ["DBG-APP-engines"]


def test_passwords_are_in_no_output(site: Path, doctor: Callable[..., Result]) -> None:
    (site / "wsgi.py").write_text(UNREACHABLE)
    failing = f"{UNREACHABLE}print(engine.url.password)\nraise RuntimeError(engine.url.render_as_string(False))\n"
    (site / "failing.py").write_text(failing)
    for arguments in (["wsgi", "--json"], ["failing"]):
        result = doctor(*arguments)
        assert result.exit_code == (1 if "wsgi" in arguments else 2)
        assert "hunter2" not in result.output
        assert "***" in result.output
    # Nor one that an argument of a factory holds.
    (site / "factory.py").write_text(f"def create_app(url): return lambda environ, start_response: ...\n{BARE}")
    result = doctor(f"factory:create_app('postgresql://app:{PASSWORD}@db/app')")
    assert "hunter2" not in result.output


IN_ARGUMENTS = f"""
import threading
from sqlalchemy import create_engine
url = "postgresql+psycopg2://"
dsn = create_engine(url + "/?dsn=host%3D127.0.0.1+port%3D1+user%3Dapp+password%3D{PASSWORD}")
options = create_engine(url + "app@127.0.0.1:1/x?options=-c+app.password%3Dother-{PASSWORD}")
threading.Thread(target=threading.Event().wait, name="pool " + url + "app:{PASSWORD}@db", daemon=True).start()
{BARE}
"""
LOADED = """
import os
os.environ["DB_PASSWORD"] = "hunter2 from a file"
print("logging in with", os.environ["DB_PASSWORD"], os.environ.get("SHOP_PASSWORD"))
raise RuntimeError(os.environ["DB_PASSWORD"])
"""
BY_URL = "import os\nprint(os.environ['DATABASE_URL'])\nraise RuntimeError(os.environ['DATABASE_URL'])\n"


@pytest.mark.parametrize("source", [IN_ARGUMENTS, LOADED, BY_URL], ids=["arguments", "loaded", "url"])
@pytest.mark.parametrize("server", ["gunicorn", "uwsgi", ""])
def test_passwords_are_hidden_wherever_they_come_from(
    source: str, server: str, site: Path, doctor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", 'postgresql://app:it\'s hunter2 "secret"@127.0.0.1:1/app')
    (site / "wsgi.py").write_text(source)
    (site / "gunicorn").write_text('raw_env = ["SHOP_PASSWORD=hunter2-in-raw-env"]\n')
    (site / "uwsgi").write_text("[uwsgi]\nenv = SHOP_PASSWORD=hunter2-in-env\n")
    configuration = [f"--{server}", f"./{server}"] if server else []
    for form in ([], ["--json"]):
        result = doctor("wsgi", *configuration, *form)
        assert "hunter2" not in result.output
        assert "secret" not in result.output
        assert "***" in result.output


def test_a_database_that_cannot_be_reached_is_a_finding(site: Path, doctor: Callable[..., Result]) -> None:
    guarded = f"{UNREACHABLE}\nfrom wsgi_dbguard import DBGuard\napplication = DBGuard(application, hold=30)\n"
    (site / "wsgi.py").write_text(guarded)
    result = doctor("wsgi", "--json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert finding["id"] == "DBG-DB-unreachable"
    assert "Connection refused" in finding["seen"]
    result = doctor("wsgi", "--json", "--no-database")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["findings"] == []
    assert any("--no-database" in each for each in report["unseen"])


def test_sqlite_needs_no_guard_and_is_not_asked(site: Path, doctor: Callable[..., Result]) -> None:
    source = "from sqlalchemy import create_engine\nfile = create_engine('sqlite:///file.db')\n"
    (site / "wsgi.py").write_text(f"{source}memory = create_engine('sqlite://')\nmemory.connect()\n{BARE}")
    result = doctor("wsgi")
    assert result.exit_code == 0
    assert "Nothing to report." in result.stdout
    assert "sqlite:///file.db; pool of 5 + 10 made at wsgi.py:2 in <module>" in " ".join(result.stdout.split())
