from __future__ import annotations

from collections.abc import Callable


def test_who_does_not_import_it_does_not_load_it(run_python: Callable[..., str]) -> None:
    program = (
        "import sys, wsgi_dbguard\n"
        "print([each for each in sys.modules if 'itsdangerous' in each or 'routing' in each])\n"
        "print(wsgi_dbguard.request.arrivals)"
    )
    assert run_python(program) == "[]\n[]\n"
