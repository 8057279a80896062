"""README and the pages: each fenced block is run as it stands there, each link leads somewhere."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsgi_dbguard.cli import main
from wsgi_dbguard.lab.postgres import PostgreSQL

from .docs_stage import stage

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "wsgi_dbguard" / "docs").glob("*.md"))

# Commands that are run here, with what is added to them so that they end soon.
RUN = {
    "wsgi-dbguard doctor wsgi:application --gunicorn gunicorn.conf.py": "",
    "wsgi-dbguard doctor --uwsgi uwsgi.ini --json": "",
    "wsgi-dbguard doctor --list": "",
    "wsgi-dbguard watch postgresql+psycopg2://app@db.example/app": " --seconds 1 --interval 0.2",
    "python -m wsgi_dbguard.idempotency postgresql": "",
}
# Commands that are not, and why. Their arguments are looked at all the same.
NOT_RUN = {
    ".ci/venv wsgi-dbguard demo": "takes a minute: tests/cli/test_demo.py",
    ".ci/venv pytest -n 3 --dist loadfile": "is what runs this",
    ".ci/venv wsgi-dbguard lab --html report.html": "takes some minutes: tests/cli/test_lab.py",
    ".ci/venv python tests/benchmarks/run.py": "loads the machine",
    "DATABASE_URL=mysql+pymysql://app@db.example/app wsgi-dbguard watch --seconds 600 --read-only": "takes ten minutes",
}


@dataclass(frozen=True)
class Block:
    """A fenced block. `line`: of the page, from 1."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, text.count("\n", 0, each.start()) + 1, each[1], each[2]) for each in found]


ALL = [block for page in (README, *PAGES) for block in blocks(page)]
UWSGI = [block for block in ALL if block.language == "ini" and block.text.startswith("[uwsgi]")]
STAGED = [block for block in ALL if block.language in ("python", "ini") and block not in UWSGI]
COMMANDS = [line for block in ALL if block.language == "sh" for line in block.text.splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment by README: its wsgi.py, gunicorn.conf.py and uwsgi.ini, around an application of somebody's."""
    directory = tmp_path_factory.mktemp("site")
    stage(directory)
    wsgi, hooks, uwsgi = blocks(README)[:3]
    (directory / "wsgi.py").write_text(wsgi.text)
    (directory / "gunicorn.conf.py").write_text(hooks.text)
    (directory / "uwsgi.ini").write_text(f"{uwsgi.text}module = wsgi:application\nprocesses = 2\n")
    return directory


@pytest.fixture(scope="module")
def environment(postgres: PostgreSQL) -> Iterator[dict[str, str]]:
    """In it db.example and replica.example are a database of the private server."""
    postgres.query("create role app login")
    postgres.query("create database app owner app")
    own = ("WSGI_DBGUARD_", "GUNICORN_", "UWSGI_", "PROMETHEUS_", "DJANGO_", "FLASK_", "PG")
    yield {
        **{name: value for name, value in os.environ.items() if not name.startswith(own)},
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "PGHOSTADDR": postgres.host,
        "PGPORT": str(postgres.port),
    }
    postgres.query("drop database app with (force)")
    postgres.query("drop role app")


@pytest.fixture(scope="module")
def outcomes(site: Path, environment: dict[str, str]) -> dict[Path, tuple[int, str]]:
    """Of each page how many blocks worked, and the error of the next one."""
    staged = list(dict.fromkeys(block.page for block in STAGED))
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "docs_stage.py", site],
        env=environment,
        input=json.dumps([[(each.language, each.text) for each in STAGED if each.page == page] for page in staged]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(staged, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in STAGED), ids=lambda page: page.name)
def test_the_snippets_of_a_page_work(page: Path, outcomes: dict[Path, tuple[int, str]]) -> None:
    mine = [block for block in STAGED if block.page == page]
    worked, error = outcomes[page]
    assert worked == len(mine), f"{mine[worked]} fails:\n{error}"


@pytest.mark.parametrize("block", UWSGI, ids=str)
def test_uwsgi_reads_its_lines(block: Block, tmp_path: Path, environment: dict[str, str]) -> None:
    program = shutil.which("uwsgi", path=environment["PATH"])
    if program is None:
        pytest.skip("uwsgi is not installed")
    (tmp_path / "uwsgi.ini").write_text(block.text)
    command = [program, "--show-config", "--plugin-list", "--ini", "uwsgi.ini"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert "shared-import = wsgi_dbguard.hooks.uwsgi" in done.stdout + done.stderr


@pytest.mark.parametrize("command", [each for each in COMMANDS if each in RUN])
def test_a_command_works(
    command: str,
    site: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(command + RUN[command])
    monkeypatch.chdir(site)
    # In a deployment by README the doctor finds nothing, and watch no fault.
    if words[:2] == ["wsgi-dbguard", "watch"]:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    elif words[0] == "wsgi-dbguard":
        for name in os.environ.keys() - environment.keys():
            monkeypatch.delenv(name)
        result = CliRunner().invoke(main, words[1:], env=environment)
        assert result.exit_code == 0, result.output
    else:
        assert words[:2] == ["python", "-m"]
        monkeypatch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__")
        assert capsys.readouterr().out


@pytest.mark.parametrize("command", NOT_RUN)
def test_a_command_that_is_not_run_takes_these_arguments(command: str) -> None:
    words = [word for word in shlex.split(command) if "=" not in word and word != ".ci/venv"]
    if words[0] == "wsgi-dbguard":
        shown = CliRunner().invoke(main, [*words[1:], "--help"])  # an option that there is not is told of first
        assert shown.exit_code == 0, shown.output
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()


def test_every_command_is_known() -> None:
    assert set(COMMANDS) == {*RUN, *NOT_RUN}, "a new command: have it run here, or say why not"


def test_every_block_is_of_a_language_that_is_run_here() -> None:
    assert {block.language for block in ALL} == {"python", "ini", "sh"}
    fences = sum(page.read_text().count("```") for page in (README, *PAGES))
    assert fences == 2 * len(ALL)  # none is indented, or not closed


def test_what_is_installed_by_name_is_an_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "".join(page.read_text() for page in (README, *PAGES))
    named = {name for names in re.findall(r"wsgi-dbguard\[([\w,]+)\]", text) for name in names.split(",")}
    assert named >= {"demo", "routing"}
    assert named <= set(extras)


def links(page: Path) -> list[tuple[str, str]]:
    """Target and anchor of each link that stays in the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [(each[0], each[1]) for each in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text)]


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"


def test_readme_names_every_page() -> None:
    named = {(ROOT / target).resolve() for target, _ in links(README)}
    assert PAGES
    assert [page.name for page in PAGES if page.resolve() not in named] == []
