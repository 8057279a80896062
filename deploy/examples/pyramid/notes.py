"""Notes, by Pyramid and SQLAlchemy. It knows nothing of the guard, which production.ini adds."""

import os
from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "pyramid_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column()


def create_tables() -> None:
    Base.metadata.create_all(create_engine(os.environ["DATABASE_URL"]))


def session_of(request: Request) -> Session:
    """``request.database``: opened when it is first asked for, closed when the request is finished."""
    session = Session(request.registry.engine)
    request.add_finished_callback(lambda request: session.close())
    return session


def healthz(request: Request) -> str:
    return "ok"


def count_notes(request: Request) -> dict[str, Any]:
    return {"total": request.database.scalar(select(func.count(Note.id)))}


def create_note(request: Request) -> dict[str, Any]:
    note = Note(text=str(request.json_body["text"]))
    request.database.add(note)
    request.database.commit()
    request.response.status = 201
    return {"id": note.id}


def main(global_config: dict[str, str], **settings: Any) -> Any:
    with Configurator(settings=settings) as config:
        config.registry.engine = create_engine(os.environ["DATABASE_URL"])
        config.add_request_method(session_of, "database", reify=True)
        config.add_route("healthz", "/healthz")
        config.add_route("notes", "/notes")
        config.add_view(healthz, route_name="healthz", renderer="string")
        config.add_view(count_notes, route_name="notes", request_method="GET", renderer="json")
        config.add_view(create_note, route_name="notes", request_method="POST", renderer="json")
        return config.make_wsgi_app()
