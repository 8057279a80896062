"""Sessions that are only left over from the import, and guards that are not found at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Examine

SEEDS = """
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
engine = create_engine("sqlite://")
with Session(engine) as session:
    session.execute(text("SELECT 1"))
"""
NEVER_CLOSED = SEEDS.replace("with Session(engine) as session:", "session = Session(engine)\nif True:")
VIEW = "def application(environ, start_response): return {}\n"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (SEEDS + VIEW.format("[]"), ["DBG-S4-closed"]),
        (SEEDS + VIEW.format("[session.scalar('x')]"), ["DBG-S4-session"]),
        (SEEDS + VIEW.format("[each for each in (lambda: session)()]"), ["DBG-S4-session"]),
        (f"{SEEDS}class Keeper: mine = session\n{VIEW.format('[]')}", ["DBG-S4-session"]),
        (f"{SEEDS}session.execute(text('SELECT 1'))\n{VIEW.format('[]')}", ["DBG-S4-session"]),
        (NEVER_CLOSED + VIEW.format("[]"), ["DBG-S4-session"]),
    ],
)
def test_a_closed_session_that_nobody_names_is_no_error(
    source: str, found: list[str], site: Path, look: Examine
) -> None:
    (site / "wsgi.py").write_text(source)
    _, findings = look("wsgi", database=False)
    assert [each.kind.id for each in findings if "-S4-" in each.kind.id] == found


def test_a_session_that_another_module_uses_is_an_error(site: Path, look: Examine) -> None:
    (site / "seeds.py").write_text(SEEDS)
    for line, body in (("import seeds", "seeds.session"), ("from seeds import session as mine", "mine")):
        (site / "wsgi.py").write_text(f"{line}\n{VIEW.format(body)}")
        _, findings = look("wsgi", database=False)
        assert "DBG-S4-session" in [each.kind.id for each in findings]


BY_GLOBAL = """
guarded = DBGuard(app, hold=7)
def application(environ, start_response):
    return guarded(environ, start_response)
"""
BY_SLOT = """
class Many:
    __slots__ = ("apps",)
    def __call__(self, environ, start_response): ...
application = Many()
application.apps = {"/shop": DBGuard(app, hold=7)}
"""


@pytest.mark.parametrize("hidden", [BY_GLOBAL, BY_SLOT])
def test_a_hidden_guard_is_found(hidden: str, site: Path, look: Examine) -> None:
    source = f"from wsgi_dbguard import DBGuard\ndef app(environ, start_response): ...\n{hidden}\n"
    (site / "wsgi.py").write_text(source)
    facts, _ = look("wsgi")
    assert facts.app.guard is not None
    assert facts.app.guard["hold"] == 7.0


def test_a_word_in_a_comment_is_no_name(site: Path, look: Examine) -> None:
    (site / "wsgi.py").write_text(f"# No StaleDataError here.\n{VIEW.format([])}")
    facts, _ = look("wsgi", database=False)
    assert facts.app.stale_at == []
