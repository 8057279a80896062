"""The settings of `Replicas`: one frozen dataclass, checked when it is made. Durations are float seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wsgi_dbguard.errors import SettingError

__all__ = ["RoutingConfig"]

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2: names of headers; of cookies too (RFC 6265)
_DURATIONS = ("lifetime", "max_lag", "pin", "wait", "check_every", "out_for", "probe_timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """How `Replicas` behaves. Every field is a keyword of it.

    Args:
        max_lag: a replica that may be further behind than this is not used; see `lagging`.
        lifetime: how long a position counts. By then every replica in use has it, so more than `max_lag`.
        pin: how long the primary is used after a write whose position is not known. More than `max_lag`, too.
        wait: how long a request waits for a replica to catch up before it takes the primary.
        check_every: pause between two looks at how far primary and replicas are, in each process, while there are
            requests that could use a replica.
        out_for: how long a replica that failed is left alone.
        probe_timeout: a replica that does not answer within this has failed. So has one to which a connection is not
            open within this, if its engine is guarded; drivers in C count whole seconds there, and libpq at least two.
        lagging: what a request gets when no replica is within `max_lag`: "primary"; "stale" (a replica all the same);
            "refuse" (`DatabaseUnavailable`, a 503).
        cookie, header: names under which the position travels; two `Replicas` of one site need names of their own.
        secure: the cookie's Secure; None: where the request came by https, as ``wsgi.url_scheme`` has it.

    Raises:
        SettingError: (a ValueError) for an impossible value.
    """

    max_lag: float = 10.0
    lifetime: float = 600.0
    pin: float = 30.0
    wait: float = 0.025
    check_every: float = 1.0
    out_for: float = 5.0
    probe_timeout: float = 1.0
    lagging: str = "primary"
    cookie: str = "db-position"
    header: str = "DB-Position"
    secure: bool | None = None

    def __post_init__(self) -> None:
        for name in _DURATIONS:
            value = getattr(self, name)
            zero = name in ("wait", "out_for")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86400 * 365:
                raise SettingError(f"{name}={value!r}: must be a number of seconds from 0 to a year")
            if value == 0 and not zero:
                raise SettingError(f"{name}={value!r}: must be above 0")
        for name in ("lifetime", "pin"):
            if getattr(self, name) <= self.max_lag:
                raise SettingError(f"{name}={getattr(self, name)!r}: must be above max_lag, which is {self.max_lag!r}")
        if self.check_every >= self.max_lag:
            raise SettingError(f"check_every={self.check_every!r}: must be below max_lag, which is {self.max_lag!r}")
        if self.lagging not in ("primary", "stale", "refuse"):
            raise SettingError(f"lagging={self.lagging!r}: must be one of primary, stale, refuse")
        for name in ("cookie", "header"):
            if not isinstance(getattr(self, name), str) or not _TOKEN.fullmatch(getattr(self, name)):
                raise SettingError(f"{name}={getattr(self, name)!r}: must be a name that HTTP allows")
        if self.secure not in (True, False, None):
            raise SettingError(f"secure={self.secure!r}: must be true, false or none")
