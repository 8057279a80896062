"""Passwords taken out of text that others wrote: what the application printed, tracebacks, a driver's errors.

Two nets. What is known to be a password, since it is in an engine's URL, in a variable of the environment whose name
says so, or was given to a driver; and what looks like one, in a URL or beside a word such as ``password``.

Example::

    secrets = Secrets(os.environ)
    secrets.add("hunter2")
    secrets.hide("cannot log in with hunter2")      # "cannot log in with ***"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus, unquote

__all__ = ["HIDDEN", "Secrets", "is_secret"]

HIDDEN = "***"
_NAME = re.compile(r"pass(?:word|wd|phrase)?$|passw|secret|token|pwd|credential|api_?key|private_?key", re.IGNORECASE)
# From "://" on, not from the scheme, and bounded: of a long line without blanks each letter could begin one.
_IN_URL = re.compile(r"(://[^\s/:@'\"]{0,300}:)([^\s'\"]{0,300})(@)")
_BESIDE = re.compile(
    r"((?:pass(?:word|wd)?|passphrase|pwd|secret|secret_key|token)['\"]?\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,;&)'\"]+)",
    re.IGNORECASE,
)
_NO_SECRETS = frozenset({"PWD", "OLDPWD"})  # the shell's directories
_SHORTEST = 3  # characters; a shorter password is hidden where it stands alone, or no text could be read
_SHORTEST_VARIABLE = 6  # characters; the name of a variable is a guess, and many hold a 1 or a word


def is_secret(name: str) -> bool:
    """Whether an argument or variable of this name holds a password."""
    return _NAME.search(name) is not None


class Secrets:
    """The passwords that are known; of `environ` those that its names or URLs give away."""

    def __init__(self, environ: Mapping[str, str] = {}) -> None:
        self._known: set[str] = set()
        for name, value in environ.items():
            if is_secret(name) and name not in _NO_SECRETS and len(value) >= _SHORTEST_VARIABLE:
                self.add(value)
            self.add(*(found[1] for found in _IN_URL.findall(value)))

    def add(self, *passwords: object) -> None:
        """Hide these as well, as they are and as they stand in a URL."""
        for each in passwords:
            text = each.decode(errors="replace") if isinstance(each, bytes) else str(each)
            if text and text != HIDDEN:
                self._known |= {text, quote(text, safe=""), quote_plus(text), unquote(text), repr(text)[1:-1]}

    def known(self) -> Iterable[str]:
        """All of them, the longest first: one may be a part of another."""
        return sorted(self._known, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """`text` without them."""
        text = _IN_URL.sub(rf"\1{HIDDEN}\3", text)
        text = _BESIDE.sub(rf"\1{HIDDEN}", text)
        for each in self.known():
            if len(each) >= _SHORTEST:
                text = text.replace(each, HIDDEN)
            else:
                text = re.sub(rf"(?<!\w){re.escape(each)}(?!\w)", HIDDEN, text)
        return text
