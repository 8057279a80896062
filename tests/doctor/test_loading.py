"""The application by its name."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from wsgi_dbguard.doctor.loading import TargetError, load

MODULE = """
def application(environ, start_response):
    return "application"

def create_app(n=1, *, name="x"):
    return lambda environ, start_response: (n, name)

class Holder:
    app = application

text = "no application"
"""
numbers = itertools.count()


@pytest.fixture
def module(site: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module's name that no other test has had."""
    monkeypatch.syspath_prepend(str(site))
    name = f"doctored_{next(numbers)}"
    (site / f"{name}.py").write_text(MODULE)
    return name


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("{}", "application"),
        ("{}:application", "application"),
        ("{}:Holder.app", "application"),
        ("{}:create_app()", (1, "x")),
        ("{}:create_app(2, name='y')", (2, "y")),
        ("{}.py", "application"),
        ("{}.py:create_app(3)", (3, "x")),
    ],
)
def test_it_is_found(module: str, target: str, answer: object) -> None:
    assert load(target.format(module))({}, None) == answer


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nowhere", "there is no module 'nowhere'"),
        ("nowhere.at.all:app", "there is no module 'nowhere.at.all'"),
        ("nowhere.py", "there is no file 'nowhere.py'"),
        ("..", "is no module's name"),
        (":app", "names no module"),
        ("{}:nothing", "there is no 'nothing' in"),
        ("{}:text", "is of type str, not a WSGI application"),
        ("{}:create_app", "for a factory write {}:create_app()"),
        ("{}:create_app(print(1))", "cannot be read"),
        ("{}:text()", "calls a str"),
        ("{}:1 +", "cannot be read"),
    ],
)
def test_what_cannot_be_found_is_told(module: str, target: str, told: str) -> None:
    with pytest.raises(TargetError) as error:
        load(target.format(module))
    assert told.format(module) in str(error.value)


def test_a_module_without_an_application_is_told(module: str, site: Path) -> None:
    (site / f"{module}.py").write_text("")
    with pytest.raises(TargetError, match="neither `application` nor `app`"):
        load(module)


def test_what_the_import_misses_is_no_missing_target(module: str, site: Path) -> None:
    (site / f"{module}.py").write_text("import nowhere_at_all")
    with pytest.raises(ModuleNotFoundError):
        load(module)
