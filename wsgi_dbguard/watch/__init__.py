"""`wsgi-dbguard watch`: is it the server, the network, or the pool? A heartbeat over three ways tells.

A row each second (or a SELECT) over a connection that is opened for it, over one that is kept open, and through a
guarded pool (`ways`). What each beat met (`beats`, `troubles`) is shown while it goes on (`view`) and judged at the end
(`verdict`). Not a monitor for months, and not a load test: three statements each second.

Example::

    from wsgi_dbguard.watch import Heart, Target, verdict
    with Heart(Target.parse("postgresql+psycopg2://app@db.example/app")) as heart:
        heart.run(seconds=60.0)
    print(verdict(heart.beats).headline)            # "Client (pool) fault"
"""

from .beats import Beat, Trouble, Way
from .heart import Heart
from .target import CannotWatch, Target
from .verdict import Fault, Verdict, verdict

__all__ = ["Beat", "CannotWatch", "Fault", "Heart", "Target", "Trouble", "Verdict", "Way", "verdict"]
