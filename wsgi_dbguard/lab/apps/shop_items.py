"""What the shops that use SQLAlchemy itself sell: a table whose rows count their versions."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    stock: Mapped[int] = mapped_column(default=10)
    version: Mapped[int] = mapped_column()
    __mapper_args__: Any = {"version_id_col": version}
