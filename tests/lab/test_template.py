"""Servers whose data directories are copies: as new ones, and nothing is left of what they are copied from."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from wsgi_dbguard.lab.mariadb import MariaDB
from wsgi_dbguard.lab.postgres import PostgreSQL, ServerMissing

PROGRAM = """
import os, sys
from pathlib import Path
from wsgi_dbguard.lab.template import _made, fill

directory = Path(sys.argv[1])
made = []

def make(place):
    made.append(place.name)
    (place / "version").write_text("18")

for name in "abcd":
    place = directory / name
    place.mkdir(0o700)
    fill(place, "kind", lambda: make(place))
    assert (place / "version").read_text() == "18"
[template] = _made.values()
if not (pid := os.fork()):
    sys.exit(0)  # through the exit handlers
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert (template / "version").exists()
print(*made, template)
"""


def test_the_third_is_a_copy_which_is_gone_with_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    *made, template = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout.split()
    assert made == ["a", "b"]
    assert not Path(template).exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PostgreSQL, MariaDB])
def test_servers_have_nothing_in_common(kind: type[PostgreSQL] | type[MariaDB]) -> None:
    with ExitStack() as stack:
        try:
            servers = [stack.enter_context(kind()) for _ in range(3)]
        except ServerMissing as missing:
            pytest.skip(str(missing))
        for number, server in enumerate(servers):
            server.query("create table mine (number int)")
            server.query(f"insert into mine values ({number})")
        assert [server.query("select number from mine") for server in servers] == [[(0,)], [(1,)], [(2,)]]
