"""10,000 pairs of a write and a read on each database: prints how many reads were stale, and who served them.

python tests/servers/own_writes.py [PAIRS]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from wsgi_dbguard.lab.own_writes import own_writes
from wsgi_dbguard.lab.replication import MariaDBPair, PostgreSQLPair


def main(pairs: int) -> int:
    """The number of stale reads of those who sent their cookies back."""
    stale = 0
    for kind in (PostgreSQLPair, MariaDBPair):
        with kind() as pair, tempfile.TemporaryDirectory() as directory:
            dropped = own_writes(pair, Path(directory), pairs=1000, remembers=False)
            print(f"{pair.primary.name}, cookies dropped:", dropped)
            for isolation in ("READ COMMITTED", "REPEATABLE READ"):
                outcome = own_writes(pair, Path(directory), pairs=pairs, isolation=isolation)
                print(f"{pair.primary.name}, {isolation}:", outcome, flush=True)
                stale += outcome.stale
    return stale


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000) > 0)
