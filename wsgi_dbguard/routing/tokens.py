"""What the client carries: how far the primary was after its last write, signed, so that nobody else can say so.

The age is in the signed part, in seconds since the epoch. A token from the future is as good as one from now: the clock
of the host that made it is ahead of ours, and to forget it would mean a stale read. (itsdangerous' own timestamps
refuse those.)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from itsdangerous import BadData, URLSafeSerializer

from wsgi_dbguard.errors import SettingError

from .positions import Position, parse

__all__ = ["Token", "Tokens"]

_LONGEST = 3500  # characters; browsers keep cookies of 4096 bytes, name and attributes included (RFC 6265, 6.1)


@dataclass(frozen=True)
class Token:
    """A position, if known; `pinned`: until when only the primary will do, seconds since the epoch."""

    position: Position | None = None
    pinned: float = 0.0

    def join(self, other: Token) -> Token:
        """What both of them ask for."""
        position = self.position or other.position
        # Positions of another kind are another database's.
        if position is not None and type(other.position) is type(position):
            position = position.join(other.position)
        return Token(position, max(self.pinned, other.pinned))

    def after(self, earlier: Token) -> Token:
        """This one, made later: its position takes the place of the earlier one, which the primary had, or has lost."""
        return Token(self.position or earlier.position, max(self.pinned, earlier.pinned))


class Tokens:
    """Signs and reads. `secret`: one, or several with the newest first: it signs, all are taken.

    `name` keeps apart what is signed with the same secret; `lifetime` in seconds.

    Raises:
        SettingError: for no secret, or an empty one.
    """

    def __init__(self, secret: str | bytes | Sequence[str | bytes], *, name: str, lifetime: float) -> None:
        secrets = [secret] if isinstance(secret, str | bytes) else list(secret)
        if not secrets or not all(isinstance(each, str | bytes) and each for each in secrets):
            raise SettingError("secret: must be a text or bytes, or several of them, and none of them empty")
        self._serializer = URLSafeSerializer(
            # itsdangerous signs with the last one.
            [each.encode() if isinstance(each, str) else each for each in reversed(secrets)],
            salt=f"wsgi_dbguard.routing.{name}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )
        self._lifetime = lifetime

    def dump(self, token: Token) -> str | None:
        """The text for cookie and header; None if it is too long for a cookie."""
        position = "" if token.position is None else str(token.position)
        text = self._serializer.dumps([position, round(time.time(), 3), round(token.pinned, 3)])
        assert isinstance(text, str)
        return text if len(text) <= _LONGEST else None

    def load(self, texts: Iterable[str]) -> Token:
        """What all of these ask for; one that is forged, expired, or no token at all asks for nothing."""
        joined = Token()
        for text in texts:
            token = self._load(text)
            if token is not None:
                joined = joined.join(token)
        return joined

    def _load(self, text: str) -> Token | None:
        if not text or len(text) > _LONGEST:
            return None
        try:
            position, made, pinned = self._serializer.loads(text)
            if time.time() - float(made) > self._lifetime:
                return None
            return Token(parse(position) if position else None, float(pinned))
        except (BadData, ValueError, TypeError):
            return None
