"""Notes on a primary and two replicas: for those who have outgrown one machine.

Each application host runs this with the same DBGUARD_SECRET, beside HAProxy and PgBouncer with the files beside this
one, and ../gunicorn.conf.py. The hosts share nothing else: a client may write on one and read on the other::

    export PRIMARY_URL=postgresql+psycopg2://notes@127.0.0.1:6432/notes          # PgBouncer, HAProxy, primary
    export REPLICA_URLS="postgresql+psycopg2://notes@127.0.0.1:5001/notes \
        postgresql+psycopg2://notes@127.0.0.1:5002/notes"                        # HAProxy, one replica each
    python -c 'import wsgi; wsgi.create_tables()'                                # once
    gunicorn --config ../gunicorn.conf.py
    curl --json '{"text": "hello"}' -H 'Idempotency-Key: 8e03978e' http://127.0.0.1:8000/notes
"""

import os

from flask import Flask, Response, abort, jsonify, request
from sqlalchemy import String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from wsgi_dbguard import DBGuard
from wsgi_dbguard.idempotency import Idempotent, create_table
from wsgi_dbguard.routing import Replicas, RoutingSession

LONGEST_NOTE = 1000

primary = create_engine(os.environ["PRIMARY_URL"])
# An engine for each replica: one behind the other's address would be taken for it.
standbys = [create_engine(url) for url in os.environ["REPLICA_URLS"].split()]

# Which replica has what a client wrote? Its cookie says how far it has to be, signed with the secret. To change the
# secret, give the new one and the old one, separated by a blank, for as long as cookies last (ten minutes). After a
# failover the other replica is used at once if the user may see whom it follows: GRANT pg_read_all_stats TO notes.
replicas = Replicas(primary, standbys, secret=os.environ["DBGUARD_SECRET"].split())
# Sessions are bound to the primary; reads of a GET go to a replica that is far enough.
Session = sessionmaker(primary, class_=RoutingSession)

app = Flask(__name__)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(LONGEST_NOTE))

    def as_dict(self) -> dict[str, int | str]:
        return {"id": self.id, "text": self.text}


def create_tables() -> None:
    """Those that are missing, also that of the keys."""
    Base.metadata.create_all(primary)
    create_table(primary)


@app.get("/healthz")
def healthz() -> Response:
    return Response("ok\n", mimetype="text/plain")


@app.get("/replicas")
def told_of_replicas() -> Response:
    """How often each replica served, and why the primary did: for the monitoring, not for the world."""
    return jsonify(replicas.stats())


@app.get("/notes")
def count_notes() -> Response:
    with Session() as session:
        return jsonify(total=session.scalar(select(func.count(Note.id))))


@app.get("/notes/<int:number>")
def show_note(number: int) -> Response:
    with Session() as session:
        note = session.get(Note, number)
        return jsonify(note.as_dict()) if note is not None else abort(404)


@app.post("/notes")
def create_note() -> tuple[Response, int]:
    body = request.get_json()
    words = body.get("text") if isinstance(body, dict) else None
    if not isinstance(words, str) or not 0 < len(words) <= LONGEST_NOTE:
        abort(400, f"text: must be a string of 1 to {LONGEST_NOTE} characters")
    with Session() as session:
        note = Note(text=words)
        session.add(note)
        session.commit()
        return jsonify(note.as_dict()), 201


# A POST with an Idempotency-Key is done once, on whichever host it arrives first. `principal` says whose key it is:
# here the user whom the server has checked; an application with logins of its own tells the user's id.
keyed = Idempotent(app, primary, principal=lambda environ: environ.get("REMOTE_USER"))

# The servers look for the name `application`. Around everything else, and for all three engines. While the primary is
# away requests wait for it for up to ten seconds; nobody waits for a replica, as the primary takes its place.
application = DBGuard(keyed, primary, *standbys, hold=10.0)
