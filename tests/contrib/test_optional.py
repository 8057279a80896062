"""Who does not import contrib pays nothing for it."""

from __future__ import annotations

from collections.abc import Callable


def test_the_core_imports_no_framework_and_nothing_of_contrib(run_python: Callable[..., str]) -> None:
    program = """
import sys
from sqlalchemy import create_engine
import wsgi_dbguard
wsgi_dbguard.guard(create_engine("sqlite://"))
wsgi_dbguard.DBGuard(print)
print([each for each in sys.modules if "contrib" in each or each.startswith(("flask", "django", "pyramid"))])
"""
    assert run_python(program) == "[]\n"
