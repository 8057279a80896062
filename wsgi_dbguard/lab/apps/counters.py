"""A counter for each client, on a primary and a replica: for `own_writes`. POST /name adds one, GET /name tells it.

``SQLALCHEMY_PRIMARY`` and ``SQLALCHEMY_REPLICA`` are the servers' URLs, ``SECRET`` is what signs the tokens,
``ISOLATION`` the level of the sessions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sqlalchemy import String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from wsgi_dbguard import DBGuard
from wsgi_dbguard.routing import Replicas, RoutingSession

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

primary = create_engine(os.environ["SQLALCHEMY_PRIMARY"], pool_size=10)
replica = create_engine(os.environ["SQLALCHEMY_REPLICA"], pool_size=10)
replicas = Replicas(primary, [replica], secret=os.environ["SECRET"])
Session = sessionmaker(
    primary.execution_options(isolation_level=os.environ.get("ISOLATION", "READ COMMITTED")), class_=RoutingSession
)


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[int] = mapped_column()


def counters(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    name = environ["PATH_INFO"][1:]
    if name == "healthz":
        answer = "ok"
    elif name == "stats":
        answer = json.dumps(replicas.stats(), default=str)
    else:
        with Session() as session:
            counter = session.get(Counter, name)
            if environ["REQUEST_METHOD"] == "POST":
                if counter is None:
                    counter = Counter(name=name, number=0)
                    session.add(counter)
                counter.number += 1
                session.commit()
            answer = "0" if counter is None else str(counter.number)  # after the commit it is read anew
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer.encode()]


application = DBGuard(counters, primary, replica)
