"""The value of the Idempotency-Key header: a structured-field string, or a bare word, as many clients send it.

Example::

    parse_key('"8e03978e-40d5-43dd-bc93-6894a57f9324"') == parse_key("8e03978e-40d5-43dd-bc93-6894a57f9324")
"""

from __future__ import annotations

import re

__all__ = ["LONGEST", "parse_key"]

LONGEST = 255  # characters of a key

# RFC 8941: 3.3.3 strings, 3.1.2 parameters (which mean nothing here), 3.3 the items that a parameter may have.
_STRING = r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"'
_ITEM = (
    r'(?:"(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"|-?[0-9]{1,12}\.[0-9]{1,3}|-?[0-9]{1,15}'
    r"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*|:[A-Za-z0-9+/=]*:|\?[01])"
)
_QUOTED = re.compile(rf"{_STRING}(?:; *[a-z*][a-z0-9_\-.*]*(?:={_ITEM})?)*")
# RFC 9110's token and what base64 and URNs need besides; a comma would be two headers that were joined.
_BARE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z:/=@]+")
_ESCAPED = re.compile(r'\\(["\\])')


def parse_key(value: str) -> str:
    """The key in the header's `value`.

    Raises:
        ValueError: if it is neither a string nor a bare word, empty, or of more than `LONGEST` characters.
    """
    text = value.strip(" \t")
    if match := _QUOTED.fullmatch(text):
        key = _ESCAPED.sub(r"\1", match[1])
    elif _BARE.fullmatch(text):
        key = text
    else:
        raise ValueError("neither a structured-field string nor a bare word")
    if not 1 <= len(key) <= LONGEST:
        raise ValueError(f"a key has 1 to {LONGEST} characters")
    return key
