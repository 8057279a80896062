"""The guard's settings as keys of a framework's configuration: one prefix, then the setting's name.

Text is read as in environment variables (`wsgi_dbguard.config.parse`), empty text is as good as none, and other values
are taken as they are. What a framework's configuration does not say comes from ``WSGI_DBGUARD_<FIELD>``, then from the
defaults::

    load({"DBGUARD_HOLD": 10.0, "DBGUARD_KEEPALIVE": "15,5,3", "SECRET_KEY": "..."}, prefix="DBGUARD_")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from wsgi_dbguard.config import GuardConfig, parse, shown
from wsgi_dbguard.errors import SettingError

__all__ = ["load", "read"]

_CHECKS = {setting.name: setting.metadata["check"] for setting in fields(GuardConfig)}


def load(values: Mapping[str, Any], *, prefix: str, **settings: Any) -> GuardConfig:
    """The configuration from `settings`, then the keys of `values`, then the environment, then the defaults.

    Raises:
        SettingError: (a ValueError) for an unknown setting or an impossible value; it names the key.
    """
    return GuardConfig.load({**read(values, prefix=prefix), **settings})


def read(values: Mapping[str, Any], *, prefix: str) -> dict[str, Any]:
    """The settings among `values`, by name. Raises as `load`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix).lower()
        if isinstance(value, str) or name not in _CHECKS:
            value = str(value)
            if name not in _CHECKS or value.strip():
                found[name] = parse(name, value, source=key)
            continue
        try:
            found[name] = _CHECKS[name](value)
        except SettingError as bound:
            raise SettingError(f"{key}={shown(name, value)}: must be {bound}") from None
    return found
