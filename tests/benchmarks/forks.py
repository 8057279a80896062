"""A process with open connections that forks again and again: what each child does before it goes on, in µs.

Run by workers.py, in a process of its own: what runs first in a child has to be registered before the guard is
imported::

    python forks.py guard postgresql+psycopg2://… ENGINES CONNECTIONS FORKS

"nothing" is a process with the same connections and no guard; "dispose" is the recipe, `engine.dispose(close=False)`
for each engine in the child. "profile" is the guard under a profiler, what it prints is a profile (see profiles.py).
"""

from __future__ import annotations

import cProfile
import json
import os
import sys
import time
from contextlib import ExitStack
from typing import Any

from profiles import lines
from sqlalchemy import create_engine

__all__ = ["main"]

_begun = 0
_profile: cProfile.Profile | None = None


def _begin() -> None:
    global _begun
    _begun = time.perf_counter_ns()
    if _profile is not None:
        _profile.enable()


os.register_at_fork(after_in_child=_begin)  # runs before the guard's, which is registered later


def main(contender: str, url: str, number: int, connections: int, forks: int) -> list[Any]:
    global _profile
    engines = [create_engine(url, pool_size=connections) for _ in range(number)]
    if contender == "profile":
        _profile = cProfile.Profile(time.thread_time)
    if contender in ("guard", "profile"):
        from wsgi_dbguard import guard

        for engine in engines:
            guard(engine)
    for engine in engines:
        with ExitStack() as stack:
            for _ in range(connections):
                stack.enter_context(engine.connect())
    found = []
    for _ in range(forks):
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            if contender == "dispose":
                for engine in engines:
                    engine.dispose(close=False)
            told: Any = (time.perf_counter_ns() - _begun) / 1000
            if _profile is not None:
                _profile.disable()
                told = lines(_profile, 1)
            os.write(write, json.dumps(told).encode())
            os._exit(0)
        os.close(write)
        found.append(json.loads(os.read(read, 65536)))
        os.close(read)
        os.waitpid(pid, 0)
    for engine in engines:
        engine.dispose()
    return found


if __name__ == "__main__":
    contender, url, *numbers = sys.argv[1:]
    engines, connections, forks = map(int, numbers)
    print(json.dumps(main(contender, url, engines, connections, forks)))
