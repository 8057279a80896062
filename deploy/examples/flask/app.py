"""Notes, by Flask, Flask-SQLAlchemy and the guard as an extension::

export DATABASE_URL=postgresql+psycopg2://notes@localhost/notes
flask --app app init-db
flask --app app dbguard doctor
gunicorn --config ../../gunicorn.conf.py "app:create_app()"
curl --json '{"text": "hello"}' http://127.0.0.1:8000/notes
"""

import os

from flask import Flask, Response, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from wsgi_dbguard.contrib.flask import DBGuardExtension


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
dbguard = DBGuardExtension()


class Note(Base):
    __tablename__ = "flask_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    app.config["DBGUARD_HOLD"] = 10.0  # requests wait for a database that restarts
    app.config.from_prefixed_env()  # FLASK_DBGUARD_HOLD=5 in the environment wins
    db.init_app(app)
    dbguard.init_app(app)  # after the configuration; before or after db makes no difference

    @app.cli.command("init-db")
    def init_db() -> None:
        """Create the tables that are missing."""
        Base.metadata.create_all(db.engine)

    @app.get("/healthz")
    def healthz() -> Response:
        return Response("ok\n", mimetype="text/plain")

    @app.get("/notes")
    def count_notes() -> Response:
        return jsonify(total=db.session.scalar(select(func.count(Note.id))))

    @app.post("/notes")
    def create_note() -> tuple[Response, int]:
        note = Note(text=str(request.get_json()["text"]))
        db.session.add(note)
        db.session.commit()
        return jsonify(id=note.id), 201

    return app
