"""uWSGI's ini files, read as uWSGI reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wsgi_dbguard.cli.config import deploy_directory
from wsgi_dbguard.doctor.ini import IniError, read

ALL = """
; a comment
# another
[other]
processes = 99
[uwsgi]
ini = %dsub/inner.ini
module = wsgi:%(name)
name = shop
env = LANG=$(DOCTOR_LANG)
env = NOTHING=$(DOCTOR_NOTHING)
set-placeholder = n=4
threads = %(n)
processes = %(threads)
twice = %(n * 2)
master
chdir = %d
stem = %n.pid
basename = %s in %c
if-env = DOCTOR_LANG
lang = %(_)
endif =
if-not-env = DOCTOR_LANG
lang = none
endif =
if-opt = threads=%(n)
never = true
endif =
if-exists = %dsub/inner.ini
found = %(_)
endif =
if-not-dir = %dsub
inside = true
endif =
harakiri = 60
harakiri = 30
"""


def same(site: Path) -> list[tuple[str, str]]:
    (site / "sub").mkdir()
    (site / "sub" / "inner.ini").write_text("[uwsgi]\nlazy-apps = true\nfrom = %d\n")
    (site / "uwsgi.ini").write_text(ALL)
    return read("uwsgi.ini", os.environ)


def test_includes_placeholders_and_conditions(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCTOR_LANG", "C.UTF-8")
    options = same(site)
    real = os.path.realpath(site)
    assert options[:4] == [
        ("lazy-apps", "true"),
        ("from", f"{real}/sub/"),
        ("module", "wsgi:shop"),
        ("name", "shop"),
    ]
    values = dict(options)
    assert values["threads"] == values["processes"] == "4"
    assert values["twice"] == "8"
    assert values["master"] == "true"
    assert values["lang"] == "C.UTF-8"
    assert values["basename"] == f"uwsgi.ini in {site.name}"
    assert values["harakiri"] == "30"
    assert [value for name, value in options if name == "env"] == ["LANG=C.UTF-8", "NOTHING=$(DOCTOR_NOTHING)"]
    assert "inside" not in values


# What uWSGI itself makes of a file, by its --show-config; without anything in it that does something on the way.
@pytest.mark.parametrize("source", ["all", "example"])
def test_uwsgi_reads_the_same(source: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("uwsgi")
    if program is None:
        pytest.skip("uwsgi is not installed")
    monkeypatch.setenv("DOCTOR_LANG", "C.UTF-8")
    if source == "all":
        options = same(site)
    else:
        for name in ("uwsgi.ini", "dbguard.ini"):
            shutil.copy(deploy_directory() / name, site)
        monkeypatch.setenv("PORT", "0")  # any: uWSGI may bind it
        options = read("uwsgi.ini", os.environ)
    command = [program, "--show-config", "--plugin-list", "--ini", "uwsgi.ini"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    shown = re.search(r"\[uwsgi\]\n(.*?);end of configuration", done.stdout + done.stderr, re.DOTALL)
    assert shown is not None, done.stdout + done.stderr
    theirs = [line.partition("=") for line in shown[1].splitlines() if line.strip()]
    control = ("ini", "show-config", "plugin-list", "endif", "set-placeholder", "if-")
    # An option without a value is shown as it stands there.
    told = [(name.strip(), value.strip() or "true") for name, _, value in theirs if not name.startswith(control)]
    assert told == options


def test_variables_of_the_environment_come_last(site: Path) -> None:
    (site / "uwsgi.ini").write_text("[uwsgi]\nprocesses = 2\n")
    assert read("uwsgi.ini", {"UWSGI_LAZY_APPS": "1"}) == [("processes", "2"), ("lazy-apps", "1")]


def test_the_output_of_a_command_is_included(site: Path) -> None:
    (site / "uwsgi.ini").write_text("[uwsgi]\nini = exec://printf '[uwsgi]\\nthreads = 3\\n'\n")
    assert read("uwsgi.ini", {}) == [("threads", "3")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("for = a b\nenv = %(_)\nendfor =", "uwsgi.ini:2: loops (for) are not read here"),
        ("include = http://example.org/x.ini", "only files and exec:// are read"),
        ("include = /nowhere.ini", "/nowhere.ini: No such file"),
        ("include = %(there)", "uwsgi.ini:2: uWSGI takes no %(option)"),
        ("include = %duwsgi.ini", "included by itself"),
        ("include = x.yaml", "only ini files are read"),
        ("include = %dempty.ini", "there is no section [uwsgi]"),
        ("ini = exec://exit 3", "exec://exit 3 failed"),
        ("if-env = A\nif-env = B", "if-env inside another if"),
        ("endif =", "endif without an if"),
        ("if-hostname = x", "if-hostname is not understood"),
        ("env = X=@(/nowhere)", "@(/nowhere): No such file"),
    ],
)
def test_what_is_not_understood_is_told(text: str, told: str, site: Path) -> None:
    (site / "uwsgi.ini").write_text(f"[uwsgi]\n{text}\n")
    (site / "empty.ini").write_text("")
    with pytest.raises(IniError) as error:
        read("uwsgi.ini", {})
    assert told in str(error.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(IniError, match="No such file"):
        read("/nowhere/uwsgi.ini", {})


def test_a_section_can_be_named(site: Path) -> None:
    (site / "all.ini").write_text("[uwsgi]\nthreads = 1\n[web]\nthreads = 2\n")
    assert read("all.ini:web", {}) == [("threads", "2")]
