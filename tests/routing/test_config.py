from __future__ import annotations

from typing import Any

import pytest

from wsgi_dbguard import SettingError
from wsgi_dbguard.routing import RoutingConfig


def test_a_token_that_expires_before_the_lag_ends_is_refused() -> None:
    with pytest.raises(SettingError, match=r"lifetime=10\.0: must be above max_lag, which is 10\.0"):
        RoutingConfig(max_lag=10.0, lifetime=10.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"pin": 5.0},
        {"check_every": 10.0},
        {"max_lag": 0},
        {"wait": -1},
        {"wait": float("nan")},
        {"probe_timeout": True},
        {"lifetime": "600"},
        {"lagging": "wait"},
        {"cookie": "a b"},
        {"header": ""},
        {"secure": "yes"},
    ],
)
def test_an_impossible_setting_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"^{next(iter(settings))}="):
        RoutingConfig(**settings)
