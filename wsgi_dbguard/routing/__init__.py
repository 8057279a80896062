"""Read your own writes, with a primary and replicas, in a request and in the client's next ones::

    from wsgi_dbguard.routing import Replicas, RoutingSession, primary

    replicas = Replicas(engine, [create_engine(url_of_a_replica)], secret=SECRET)
    Session = sessionmaker(engine, class_=RoutingSession)  # or SQLAlchemy(session_options={"class_": RoutingSession})
    application = DBGuard(application)

A request whose method is safe reads from one replica until the first sign of a write, and from then on from the
primary; any other request, and what runs outside of requests, has the primary. After a request that wrote, the
response carries the position of that write, signed, in a cookie and in the header ``DB-Position`` (API clients send it
back): the client's next request has a replica only if that replica has come so far. Processes and hosts share nothing
but the secret. ``with primary():`` and the execution option ``dbguard_primary=True`` ask for the primary by hand.

Not for replicas that take writes, nor for several servers behind one URL: each replica is an engine of its own, and it
must refuse writes (a standby; ``read_only`` in MariaDB and MySQL). Nor for replicas behind PgBouncer, which keeps its
clients' connections when the server behind it restarts with less than it had: deploy/replicas has it before the
primary only. What commits after the headers have left (a response that streams) gives its client a pin to the primary,
for the seconds of the setting `pin`.
"""

from .config import RoutingConfig
from .replicas import Replicas
from .session import RoutingSession, primary

__all__ = ["Replicas", "RoutingConfig", "RoutingSession", "primary"]
