"""The guard's settings as keys of a framework's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from wsgi_dbguard import GuardConfig, SettingError
from wsgi_dbguard.contrib.settings import load, read


@pytest.mark.parametrize(
    ("key", "value", "name", "meant"),
    [
        ("DBGUARD_HOLD", 10, "hold", 10.0),
        ("DBGUARD_HOLD", " 10 ", "hold", 10.0),
        ("DBGUARD_KEEPALIVE", "15,5,3", "keepalive", (15, 5, 3)),
        ("DBGUARD_KEEPALIVE", [15, 5, 3], "keepalive", (15, 5, 3)),
        ("DBGUARD_KEEPALIVE", None, "keepalive", None),
        ("DBGUARD_KEEPALIVE", "none", "keepalive", None),
        ("DBGUARD_LEAK_STACKS", "on", "leak_stacks", True),
        ("DBGUARD_LEAK_STACKS", True, "leak_stacks", True),
        ("DBGUARD_STATUSES", "conflicts", "statuses", "conflicts"),
        ("DBGUARD_REPLAY", "uncommitted", "replay", "uncommitted"),
    ],
)
def test_a_key_is_a_setting_as_text_or_as_a_value(key: str, value: Any, name: str, meant: Any) -> None:
    assert read({key: value, "SECRET_KEY": "of no interest"}, prefix="DBGUARD_") == {name: meant}


def test_empty_text_is_as_good_as_none() -> None:
    assert read({"dbguard.hold": "", "dbguard.deadline": "  "}, prefix="dbguard.") == {}


@pytest.mark.parametrize("value", [1, "1", "", None, []])
def test_an_unknown_key_is_refused_by_name(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^unknown setting DBGUARD_HOLT; there are: .*\bhold\b"):
        read({"DBGUARD_HOLT": value}, prefix="DBGUARD_")


@pytest.mark.parametrize("value", [-1, "-1", "soon", None, True, [1], float("nan")])
def test_an_impossible_value_is_refused_with_key_value_and_bound(value: Any) -> None:
    with pytest.raises(SettingError) as caught:
        read({"dbguard.hold": value}, prefix="dbguard.")
    assert str(caught.value).startswith(f"dbguard.hold={value!r}: must be a number of seconds of at least 0 and at")


def test_keywords_win_over_keys_and_keys_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOLD", "DEADLINE", "PING_AFTER"):
        monkeypatch.setenv(f"WSGI_DBGUARD_{name}", "1")
    config = load({"DBGUARD_HOLD": 2, "DBGUARD_DEADLINE": 2}, prefix="DBGUARD_", hold=3)
    assert config == GuardConfig(hold=3.0, deadline=2.0, ping_after=1.0)
