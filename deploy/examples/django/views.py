"""The pages, and where they are."""

import json

from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

engine = create_engine(settings.DATABASE_URL)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "django_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column()


def create_tables() -> None:
    Base.metadata.create_all(engine)


def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok\n", content_type="text/plain")


def notes(request: HttpRequest) -> HttpResponse:
    with Session(engine) as session:
        if request.method == "POST":
            note = Note(text=str(json.loads(request.body)["text"]))
            session.add(note)
            session.commit()
            return JsonResponse({"id": note.id}, status=201)
        return JsonResponse({"total": session.scalar(select(func.count(Note.id)))})


def clock(request: HttpRequest) -> HttpResponse:
    """By Django's own connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        return JsonResponse({"now": cursor.fetchone()[0]})


urlpatterns = [path("healthz", healthz), path("notes", notes), path("clock", clock)]
