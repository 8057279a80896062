"""The report: text of 80 columns, a table, JSON; and the command's exit codes."""

from __future__ import annotations

import io
import json
import re
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

import wsgi_dbguard.doctor
from wsgi_dbguard.cli import main
from wsgi_dbguard.doctor import CannotLook, Order, report
from wsgi_dbguard.doctor.checks import findings
from wsgi_dbguard.doctor.facts import Facts, OpenedFacts
from wsgi_dbguard.doctor.kinds import KINDS, Finding

from .facts import app, database, engine, gunicorn, uwsgi

PAGE = Path(__file__).parents[2] / "wsgi_dbguard" / "docs" / "doctor.md"

SOUND = Facts(app=app(), server=gunicorn(), databases=[database()])
WARNED = Facts(app=app(engine(pool="NullPool")), server=gunicorn(), databases=[database()])
BROKEN = Facts(
    app=app(
        engine(guarded=False),
        guarded=False,
        opened=[OpenedFacts(engine=0, place="/srv/a/rather/long/path/to/the/shop/of/someone/models.py:9 in <module>")],
    ),
    server=gunicorn(preloads=True, hooks=False, processes=60),
    databases=[database(tls=False)],
    unseen=["the server of x: async drivers are not asked"],
)


def test_text_fits_80_columns_and_says_all() -> None:
    found = findings(BROKEN)
    assert len(found) == 4
    text = report.text(BROKEN, found)
    assert max(map(len, text.splitlines())) <= 80
    for finding in found:
        assert f"{finding.kind.severity.upper()} {finding.kind.id}" in text
        words = f"{finding.seen} {finding.happens} {finding.change}".split()
        assert all(word in text for word in words)
    assert "2 errors, 2 warnings, 0 info." in text
    assert "Not looked at: the server of x" in text
    assert text.index("ERROR") < text.index("WARNING")


def test_what_was_looked_at_stands_above_the_findings() -> None:
    application, server, *engines = report.heading(SOUND).splitlines()
    assert application == "application: wsgi:application (function), wrapped by DBGuard"
    assert server == "server:      gunicorn 27.0, by gunicorn.conf.py: 2 processes of 4 threads"
    assert " ".join(" ".join(engines).split()).startswith("engine: postgresql+psycopg2://")


def test_the_finding_that_the_page_shows_is_made_so() -> None:
    opened = OpenedFacts(engine=0, place="logs.py:9 in log")
    pinged = app(engine(guarded=False, pre_ping=True), guarded=False, opened=[opened])
    shared = Facts(app=pinged, server=uwsgi(preloads=True, hooks=False), databases=[database()])
    (shown,) = re.findall(r"(?:^    .*\n)+", PAGE.read_text(), re.MULTILINE)
    assert textwrap.dedent(shown) in report.text(shared, findings(shared))


def test_nothing_to_report_is_said() -> None:
    assert findings(SOUND) == []
    assert report.text(SOUND, []).endswith("\n\nNothing to report.")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal_and_cuts_nothing(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    found = findings(BROKEN)
    console.print(report.table(found))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text.replace("create_engine(…", "")
    for finding in found:
        assert finding.kind.id in text


def test_every_kind_is_listed_in_80_columns() -> None:
    result = CliRunner().invoke(main, ["doctor", "--list"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for kind in KINDS.values():
        assert f"{kind.id:<19} {kind.severity}" in result.stdout


@pytest.mark.parametrize(
    ("facts", "threshold", "code"),
    [
        (SOUND, "info", 0),
        (WARNED, "error", 0),
        (WARNED, None, 1),
        (WARNED, "warning", 1),
        (WARNED, "info", 1),
        (WARNED, "never", 0),
        (BROKEN, "error", 1),
        (BROKEN, "never", 0),
    ],
)
def test_the_exit_code_is_for_a_ci(
    facts: Facts, threshold: str | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, facts)
    arguments = ["--fail-on", threshold] if threshold else []
    assert CliRunner().invoke(main, ["doctor", "wsgi", *arguments]).exit_code == code
    result = CliRunner().invoke(main, ["doctor", "wsgi", "--json", *arguments])
    assert result.exit_code == code
    told = json.loads(result.stdout)
    assert [each["id"] for each in told["findings"]] == [each.kind.id for each in findings(facts)]
    assert sum(told["counts"].values()) == len(told["findings"])
    for finding in told["findings"]:
        assert list(finding) == ["id", "severity", "seen", "happens", "change"]


def pretend(monkeypatch: pytest.MonkeyPatch, facts: Facts) -> None:
    """The application has been looked at, and this was found."""

    def examine(order: Order) -> tuple[Facts, list[Finding]]:
        return facts, findings(facts)

    monkeypatch.setattr(wsgi_dbguard.doctor, "examine", examine)


def test_what_cannot_be_looked_at_is_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(order: Order) -> None:
        raise CannotLook("there is nothing", "a line\nanother")

    monkeypatch.setattr(wsgi_dbguard.doctor, "examine", examine)
    result = CliRunner().invoke(main, ["doctor", "wsgi"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "a line\nanother\nCould not look: there is nothing\n"
    result = CliRunner().invoke(main, ["doctor", "wsgi", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {"error": "there is nothing", "output": ["a line", "another"]}


@pytest.mark.parametrize(
    "arguments",
    [[], ["wsgi", "--gunicorn", "a", "--uwsgi", "b"], ["wsgi", "--fail-on", "x"], ["wsgi", "--timeout", "0"]],
)
def test_a_wrong_order_is_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["doctor", *arguments]).exit_code == 2
