"""Who does not import it pays nothing, and who lacks an extra is told which."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry", "opentelemetry")],
)
def test_without_its_extra_a_module_says_so_and_the_guard_works(
    run_python: Callable[..., str], module: str, package: str, extra: str
) -> None:
    program = f"""
import sys
sys.modules["{package}"] = None
from sqlalchemy import create_engine
from wsgi_dbguard import DBGuard, guard
try:
    import wsgi_dbguard.metrics.{module}
except ImportError as error:
    print(error)
guard(create_engine("sqlite://")).stats()
DBGuard(print)
"""
    assert f"pip install 'wsgi-dbguard[{extra}]'" in run_python(program)


def test_the_core_and_the_hooks_import_nothing_of_it(run_python: Callable[..., str]) -> None:
    program = """
import sys
import wsgi_dbguard
import wsgi_dbguard.hooks.gunicorn
from sqlalchemy import create_engine
engine = create_engine("postgresql+psycopg2://nobody@localhost/nothing")
wsgi_dbguard.guard(engine)
wsgi_dbguard.hooks.gunicorn.child_exit(None, None)
print([each for each in sys.modules if "metrics" in each or each.startswith(("prometheus", "opentelemetry"))])
print("connect" in vars(engine.pool), wsgi_dbguard.tally.observers)
"""
    assert run_python(program, PROMETHEUS_MULTIPROC_DIR="") == "[]\nFalse []\n"
