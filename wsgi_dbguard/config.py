"""The settings of the guard: one frozen dataclass, checked when it is made.

A value comes from the keyword, else from the environment variable ``WSGI_DBGUARD_<FIELD>``, else from the default::

    DBGuard(application, ping_after=30.0)           # this one setting in code, the rest from environment or defaults
    WSGI_DBGUARD_PING_AFTER=30 gunicorn wsgi        # the same from outside
    DBGuard(application, config=GuardConfig(...))   # all of them in code: the environment is not read

Durations are float seconds. An impossible value is refused with a `SettingError` that names it; nothing is clamped.
In text, ``none`` switches off what can be switched off, and lists are separated by commas (``15,5,3``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from .errors import SettingError
from .patterns import lazily

__all__ = ["ENV_PREFIX", "GuardConfig", "parse", "shown"]

ENV_PREFIX = "WSGI_DBGUARD_"
# What a pool's guard goes by; the others are the middleware's.
POOL_SETTINGS = (
    "ping_after",
    "ping_timeout",
    "connect_timeout",
    "keepalive",
    "user_timeout",
    "max_lifetime",
    "idle_timeout",
    "evict_readonly",
    "hold",
    "retry_after",
    "settle",
    "skip_idle_rollback",
)
_LONGEST = 100 * 365 * 86400.0  # a hundred years, in seconds: within what threads' locks and floats can tell


def _seconds(
    *, low: float = 0.0, above: bool = False, high: float = _LONGEST, optional: bool = False
) -> Callable[[object], float | None]:
    """A check for a duration of at least `low` (with `above`: more than `low`) and at most `high` seconds."""
    least = f"{'above' if above else 'of at least'} {low:g}"
    bound = f"a number of seconds {least} and at most {high:.0f}{', or none' if optional else ''}"

    def check(value: object) -> float | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingError(bound)
        if not low <= value <= high or (above and value == low):  # NaN is not in between
            raise SettingError(bound)
        return float(value)

    return check


def _one_of(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in words:
            raise SettingError(f"one of {', '.join(words)}")
        return str(value)

    return check


def _bytes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.maxsize or value % 1:
        raise SettingError("a whole number of bytes, 0 or more")
    return int(value)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise SettingError("true or false")


def _statuses(value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if value == "conflicts":
        return "conflicts"
    raise SettingError("true, false or conflicts")


def _keepalive(value: object) -> tuple[int, int, int] | None:
    if value is None:
        return None
    parts = tuple(value) if isinstance(value, tuple | list) else ()
    # The upper bounds are the kernel's: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL, MAX_TCP_KEEPCNT in Linux' net/tcp.h.
    if (
        len(parts) != 3
        or any(isinstance(part, bool) or not isinstance(part, int) for part in parts)
        or not (1 <= parts[0] <= 32767 and 1 <= parts[1] <= 32767 and 1 <= parts[2] <= 127)
    ):
        raise SettingError("three whole numbers: idle and interval seconds of 1 to 32767, count of 1 to 127; or none")
    return parts


def _prefix(value: object) -> str | None:
    if value is None:
        return None
    # What a URL's path may have without being escaped, so that the path that arrives is the one that was set.
    if not isinstance(value, str) or not _PREFIX.fullmatch(value):
        raise SettingError("a path prefix such as /-/db, with a slash at its beginning and none at its end; or none")
    return value


def _secret(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise SettingError("text of 16 characters or more, of letters, digits and -._~+/=; or none")
    return value


_PREFIX = lazily(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+")
_TOKEN = lazily(r"[A-Za-z0-9._~+/=-]{16,}")  # what a Bearer token may have (RFC 6750)
_VERBATIM = (_prefix, _secret)


def _setting(default: Any, check: Callable[[object], object], meaning: str) -> Any:
    return field(default=default, metadata={"check": check, "meaning": meaning}, repr=check is not _secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """How the guard behaves. Every field is a keyword of `DBGuard` and `guard` too.

    Raises:
        SettingError: (a ValueError) for a value outside its bound.
    """

    ping_after: float = _setting(
        60.0, _seconds(), "idle longer than this: a real ping as well as the socket check; 0 = always ping"
    )
    ping_timeout: float = _setting(
        2.0, _seconds(above=True), "a ping that takes longer counts as dead, on every driver"
    )
    # libpq takes whole seconds, and 2 for 1.
    connect_timeout: float | None = _setting(
        10.0,
        _seconds(low=2.0, high=2147483.0, optional=True),
        "opening a connection that takes longer fails (libpq's drivers count all of it, the others each step of the "
        "handshake anew), where the driver can be told so and was not told otherwise; none = leave",
    )
    keepalive: tuple[int, int, int] | None = _setting(
        (15, 5, 3),
        _keepalive,
        "TCP keepalive idle, interval (seconds) and count, set on every pooled socket; none = leave",
    )
    # The kernel takes whole milliseconds in a C int, and 0 would mean "the default".
    user_timeout: float | None = _setting(
        30.0,
        _seconds(low=0.001, high=2147483.0, optional=True),
        "TCP_USER_TIMEOUT on every pooled socket; none = leave",
    )
    max_lifetime: float | None = _setting(
        3600.0,
        _seconds(above=True, optional=True),
        "connections older than this are replaced at checkout or when idle, each with its own jitter (-10 %); "
        "none = never",
    )
    idle_timeout: float | None = _setting(
        600.0,
        _seconds(above=True, optional=True),
        "pooled connections that were not taken for longer are closed; none = never",
    )

    replay: str = _setting(
        "safe",
        _one_of("off", "safe", "uncommitted"),
        "which requests may run again when the database fails them: off, safe (GET, HEAD, OPTIONS), uncommitted (any "
        "method whose request has committed nothing)",
    )
    replay_body: int = _setting(65536, _bytes, "largest request body kept for a replay, bytes")
    hold: float = _setting(
        0.0, _seconds(), "how long a request may wait for a database that is away before it gets its 503"
    )
    # A probe for each tenth of a second would be a storm of its own.
    retry_after: float = _setting(
        2.0,
        _seconds(low=0.1),
        "base of the jittered Retry-After, and of the pause between two attempts to reach a database that is away",
    )
    deadline: float | None = _setting(
        None,
        _seconds(above=True, optional=True),
        "the longest a request may spend in the database: a query still running then is cancelled on the server; "
        "none = no limit",
    )
    settle: bool = _setting(
        False,
        _switch,
        "ask PostgreSQL for the transaction's id before each COMMIT (one round trip), so that one whose reply was lost "
        "is known to have been carried out or not",
    )
    skip_idle_rollback: bool = _setting(
        False,
        _switch,
        "leave out the ROLLBACK that MySQL's dialects send at each checkin (one round trip) where nothing was sent "
        "since the last COMMIT or ROLLBACK",
    )
    statuses: bool | str = _setting(
        True,
        _statuses,
        "turn an unsent 500 that the database caused into 503 or 409; conflicts = the same, and into 409 one of a "
        "serialization failure or a deadlock too",
    )
    leaks: str = _setting(
        "heal",
        _one_of("off", "warn", "heal", "raise"),
        "what to do with what a request leaves behind, sessions in a transaction, changed settings, locks, connections "
        "that are still out: off, warn, heal (all but the last are put right), raise",
    )
    leak_stacks: bool = _setting(
        False,
        _switch,
        "keep the stack of each checkout, for the report of connections that are still out and of sessions left in a "
        "transaction",
    )
    evict_readonly: bool = _setting(True, _switch, "a primary that turned read-only (failover) is a dead connection")
    health: str | None = _setting(
        None,
        _prefix,
        "path prefix under which health endpoints and the status page are served, such as /-/db; none = off",
    )
    health_token: str | None = _setting(
        None,
        _secret,
        "what the status page asks for, as a Bearer token or as a password; none = nothing",
    )

    def same_pool(self, other: GuardConfig) -> bool:
        """Whether a pool is guarded the same by both."""
        return all(getattr(self, name) == getattr(other, name) for name in POOL_SETTINGS)

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            try:
                checked = setting.metadata["check"](value)
            except SettingError as bound:
                raise SettingError(f"{setting.name}={shown(setting.name, value)}: must be {bound}") from None
            object.__setattr__(self, setting.name, checked)

    @classmethod
    def load(cls, settings: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> GuardConfig:
        """The configuration from keywords, then `environ` (default: `os.environ`), then defaults.

        Raises:
            SettingError: for an unknown keyword or variable, or an impossible value. A variable's text is named as
            such.
        """
        values = dict(settings)
        for name in values:
            _named(name, source=name)
        for key, text in (os.environ if environ is None else environ).items():
            if key.startswith(ENV_PREFIX) and text.strip():  # an empty one is as good as none
                name = key.removeprefix(ENV_PREFIX).lower()
                value = parse(name, text, source=key)
                values.setdefault(name, value)
        return cls(**values)


def _named(name: str, *, source: str) -> Field[Any]:
    known = {setting.name: setting for setting in fields(GuardConfig)}
    if name not in known:
        raise SettingError(f"unknown setting {source}; there are: {', '.join(known)}")
    return known[name]


def shown(name: str, value: object) -> str:
    """The value of setting `name` as an error may tell it: not one that is a secret."""
    known = {setting.name: setting for setting in fields(GuardConfig)}
    return repr(value) if name not in known or known[name].repr else "(not shown)"


def parse(name: str, text: str, *, source: str) -> Any:
    """The value of setting `name` from `text`; `source` (a variable, a URL argument) is what errors call it.

    Raises:
        SettingError: for an unknown setting or an impossible value.
    """
    check = _named(name, source=source).metadata["check"]
    word = text.strip().lower()
    value: object
    try:
        if word == "none":
            value = None
        elif check in _VERBATIM:
            value = text.strip()
        elif "," in word:
            value = tuple(int(part) for part in word.split(","))
        else:
            value = float(word)
    except ValueError:
        value = word
    try:
        return check(_SWITCHES.get(word, value) if check in (_switch, _statuses) else value)
    except SettingError as bound:
        raise SettingError(f"{source}={shown(name, text)}: must be {bound}") from None


_SWITCHES = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
