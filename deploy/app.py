"""The example application: notes in a database, by Flask and Flask-SQLAlchemy.

It knows nothing of servers, forks or the guard, which `wsgi.py` beside it adds::

    export DATABASE_URL=postgresql+psycopg2://notes@localhost/notes
    flask --app app init-db
    gunicorn --config gunicorn.conf.py          # or: uwsgi --ini uwsgi.ini
    curl --json '{"text": "hello"}' http://127.0.0.1:8000/notes
"""

import os

from flask import Flask, Response, abort, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

LONGEST_NOTE = 1000
NOTES_PER_PAGE = 100


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(LONGEST_NOTE))

    def as_dict(self) -> dict[str, int | str]:
        return {"id": self.id, "text": self.text}


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    # No query here or at import: the server then starts while the database is away, and a master that
    # preloads the application opens no connection which its workers would inherit. Tables are made once, by
    # `init-db`.
    db.init_app(app)

    @app.cli.command("init-db")
    def init_db() -> None:
        """Create the tables that are missing."""
        Base.metadata.create_all(db.engine)

    @app.get("/healthz")
    def healthz() -> Response:
        return Response("ok\n", mimetype="text/plain")

    @app.get("/echo")
    def echo() -> Response:
        """The token, by way of the database: a wrong one shows that two processes share a connection."""
        token = request.args.get("token", "")
        return Response(db.session.scalar(text("SELECT :token"), {"token": token}), mimetype="text/plain")

    @app.get("/notes")
    def list_notes() -> Response:
        newest = db.session.scalars(select(Note).order_by(Note.id.desc()).limit(NOTES_PER_PAGE))
        total = db.session.scalar(select(func.count(Note.id)))
        return jsonify(total=total, notes=[note.as_dict() for note in newest])

    @app.post("/notes")
    def create_note() -> tuple[Response, int]:
        body = request.get_json()
        words = body.get("text") if isinstance(body, dict) else None
        if not isinstance(words, str) or not 0 < len(words) <= LONGEST_NOTE:
            abort(400, f"text: must be a string of 1 to {LONGEST_NOTE} characters")
        note = Note(text=words)
        db.session.add(note)
        db.session.commit()
        return jsonify(note.as_dict()), 201

    return app
