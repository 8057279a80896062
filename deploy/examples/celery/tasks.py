"""Notes that are written in the background, by Celery and SQLAlchemy. Brokers and the like are in celeryconfig.py::

export DATABASE_URL=postgresql+psycopg2://notes@localhost/notes
python -c "import tasks; tasks.create_tables()"
celery --app tasks worker
python -c "import tasks; print(tasks.add_note.delay('hello').get())"
"""

import os

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import wsgi_dbguard.hooks.celery  # noqa: F401 (its worker processes never use what their parent has opened)
from wsgi_dbguard import guard

app = Celery("tasks")
app.config_from_object("celeryconfig")
engine = create_engine(os.environ["DATABASE_URL"])
guard(engine, hold=10.0)  # tasks wait for a database that restarts


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "celery_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column()


def create_tables() -> None:
    Base.metadata.create_all(engine)


@app.task  # type: ignore[untyped-decorator]
def add_note(text: str) -> int:
    with Session(engine) as session:
        note = Note(text=text)
        session.add(note)
        session.commit()
        return note.id
