"""S2, the shared pool: uWSGI with a master, two processes and two threads, and an application that uses the database
at import. The workers inherit the connection: "This result object does not return rows", "lost synchronization with
server", and answers that belong to somebody else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgi_dbguard.lab.cross_talk import SETUPS, cross_talk
from wsgi_dbguard.lab.postgres import PostgreSQL

pytestmark = pytest.mark.slow

(PREFORK,) = [setup for setup in SETUPS if setup.name == "uWSGI prefork"]


def test_connection_of_the_master_in_two_workers(postgres: PostgreSQL, tmp_path: Path) -> None:
    shared = cross_talk(PREFORK, guarded=False, requests=1000, seconds=8.0, postgres=postgres, directory=tmp_path)
    assert shared.load.failed + shared.load.wrong > 0, shared.load

    guarded = cross_talk(PREFORK, guarded=True, requests=1000, postgres=postgres, directory=tmp_path)
    assert guarded.clean, guarded.load
    assert guarded.load.requests == 1000
