"""Requests with statements, in a process that has never imported the guard: the `nothing` of growth.py.

Run by it, as ``python unguarded.py in_session 10``.
"""

from __future__ import annotations

import sys

import inprocess
from measuring import answer_samples
from sqlalchemy import create_engine

if __name__ == "__main__":
    make = getattr(inprocess, sys.argv[1])
    answer_samples(inprocess.serve(make(create_engine("sqlite://"), int(sys.argv[2]))))
    assert "wsgi_dbguard" not in sys.modules
