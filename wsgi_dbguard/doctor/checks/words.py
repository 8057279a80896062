"""Numbers and names in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wsgi_dbguard.doctor.facts import EngineFacts, ServerFacts

__all__ = ["WRAP", "count", "engine_at", "hooks_line", "listed", "seconds", "sentence"]

WRAP = "In wsgi.py: from wsgi_dbguard import DBGuard\napplication = DBGuard(application)\n"
_MOST = 5  # names in a sentence


def count(number: int, word: str) -> str:
    """``1 connection``, ``2 connections``, ``2 processes``."""
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{number} {word if number == 1 else plural}"


def seconds(value: float | None) -> str:
    """``30 s``."""
    return "no limit" if value is None else f"{value:g} s"


def listed(names: Iterable[str]) -> str:
    """The different names, in the order in which they come first; not more than a few."""
    different: Sequence[str] = list(dict.fromkeys(names))
    more = len(different) - _MOST
    return ", ".join(different[:_MOST]) + (f" and {more} more" if more > 0 else "")


def engine_at(engine: EngineFacts) -> str:
    """An engine by its URL and the line that made it."""
    return f"the engine of {engine.url}, made at {engine.made_at or 'an unknown line'},"


def hooks_line(server: ServerFacts) -> str:
    """What belongs into the server's configuration."""
    if server.name == "gunicorn":
        return f"In {server.file}: from wsgi_dbguard.hooks.gunicorn import *"
    return f"In {server.file}: ini = exec://wsgi-dbguard config uwsgi"


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]
