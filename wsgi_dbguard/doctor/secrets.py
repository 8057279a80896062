"""Passwords taken out of text that others wrote: what the application printed, tracebacks, a driver's errors.

Two nets. What is known to be a password, since it is in an engine's URL, in a variable of the environment whose name
says so, or was given to a driver; and what looks like one, in a URL or beside a word such as ``password``.

Example::

    secrets = Secrets(os.environ)
    secrets.add("hunter2")
    secrets.hide("cannot log in with hunter2")      # "cannot log in with ***"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

__all__ = ["HIDDEN", "Secrets", "in_variable", "is_secret", "passwords_in"]

HIDDEN = "***"
_NAME = re.compile(r"pass(?:word|wd|phrase)?$|passw|secret|token|pwd|credential|api_?key|private_?key", re.IGNORECASE)
# From "://" on, not from the scheme, and bounded: of a long line without blanks each letter could begin one.
_IN_URL = re.compile(r"(://[^\s/:@'\"]{0,300}:)([^\s'\"]{0,300})(@)")
# Where the text is a URL, or little else, its password may have blanks and quotes: up to the first @, and to the last.
_ONLY_URL = (re.compile(r"://[^\s/:@]*:([^@]*)@"), re.compile(r"://[^\s/:@]*:(.*)@", re.DOTALL))
# ODBC has values in braces; = may stand there as %3D.
_BESIDE = re.compile(
    r"((?:passwor[dt]|passwd|passphrase|pass|pwd|\bpw|secret|secret_key|token|api_?key)['\"]?\s*(?:[=:]|%3[dD])\s*)"
    r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\{[^}]*\}|['\"]?[^\s,;&)'\"]+)",
    re.IGNORECASE,
)
_NO_SECRETS = frozenset({"PWD", "OLDPWD"})  # the shell's directories
_SHORTEST = 3  # characters; a shorter password is hidden where it stands alone, or no text could be read
_SHORTEST_VARIABLE = 6  # characters; the name of a variable is a guess, and many hold a 1 or a word
_ROUNDS = 3  # times that text is decoded: a DSN in an argument of a URL in an argument
_LONGEST = 10_000  # characters of a text that is searched for passwords
# A password that is a part of one of these words is hidden where it stands alone, or the report could not be read.
_WORDS = (
    "postgresql psycopg2 pg8000 mysql mysqldb pymysql mariadb sqlite mssql oracle localhost database dbguard "
    "wsgi application gunicorn uwsgi engine password session connection request server worker module public"
)


def is_secret(name: str) -> bool:
    """Whether an argument or variable of this name holds a password."""
    return _NAME.search(name) is not None


def passwords_in(text: str) -> set[str]:
    """What looks like a password in a URL, a DSN or a list of options, though it be percent-encoded."""
    found: set[str] = set()
    text = text[:_LONGEST]
    for _ in range(_ROUNDS):
        for pattern in (_IN_URL, _BESIDE):
            found |= {_bare(each[1]) for each in pattern.findall(text)}
        for only in _ONLY_URL:
            found |= set(only.findall(text))
        decoded = unquote_plus(text)
        if decoded == text:
            break
        text = decoded
    return {each for each in found if len(each) >= _SHORTEST and each != HIDDEN}


def in_variable(name: str, value: str) -> set[str]:
    """The passwords that a variable of the environment gives away, by its name or by what is in it."""
    found = passwords_in(value)
    if is_secret(name) and name not in _NO_SECRETS and len(value) >= _SHORTEST_VARIABLE:
        found.add(value)
    return found


def _bare(value: str) -> str:
    """Without the quotes or braces around it."""
    if value[:1] in ("'", '"'):
        value = value[1:].removesuffix(value[0])
    return value[1:-1] if value[:1] == "{" and value[-1:] == "}" else value


class Secrets:
    """The passwords that are known; of `environ` those that its names or URLs give away."""

    def __init__(self, environ: Mapping[str, str] = {}) -> None:
        self._known: set[str] = set()
        for name, value in environ.items():
            self.add(*in_variable(name, value))

    def add(self, *passwords: object) -> None:
        """Hide these as well, as they are and as they stand in a URL or in quotes."""
        for each in passwords:
            text = each.decode(errors="replace") if isinstance(each, bytes) else str(each)
            if text and text != HIDDEN:
                self._known |= {each for each in _spelled(text) if each}

    def known(self) -> Iterable[str]:
        """All of them, the longest first: one may be a part of another."""
        return sorted(self._known, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """`text` without them."""
        text = _IN_URL.sub(rf"\1{HIDDEN}\3", text)
        text = _BESIDE.sub(rf"\1{HIDDEN}", text)
        for each in self.known():
            if len(each) >= _SHORTEST and each.lower() not in _WORDS:
                text = text.replace(each, HIDDEN)
            else:
                text = re.sub(rf"(?<!\w){re.escape(each)}(?!\w)", HIDDEN, text)
        return text

    def hide_all(self, value: Any) -> Any:
        """`value`, as JSON can hold it, without them in any of its texts."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.hide_all(each) for each in value]
        if isinstance(value, dict):
            return {name: self.hide_all(each) for name, each in value.items()}
        return value


def _spelled(text: str) -> Iterator[str]:
    for each in (text, unquote(text)):
        yield from (each, repr(each)[1:-1], each.replace("\\", "\\\\").replace("'", "\\'"), json.dumps(each)[1:-1])
        # The last one is SQLAlchemy's.
        yield from (quote(each, safe=""), quote(each), quote_plus(each), quote(each, safe=" +"))
