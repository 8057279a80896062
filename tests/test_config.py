"""Settings: every bound is kept, every refusal names the setting, the value and the bound."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_dbguard import GuardConfig, SettingError
from wsgi_dbguard.config import ENV_PREFIX, parse

NAMES = [setting.name for setting in fields(GuardConfig)]
YEARS = 3153600000.0  # a hundred
SECONDS = {  # lowest, whether that itself is allowed, highest, whether it can be switched off
    "ping_after": (0.0, True, YEARS, False),
    "ping_timeout": (0.0, False, YEARS, False),
    "user_timeout": (0.001, True, 2147483.0, True),
    "max_lifetime": (0.0, False, YEARS, True),
    "idle_timeout": (0.0, False, YEARS, True),
    "connect_timeout": (2.0, True, 2147483.0, True),
    "hold": (0.0, True, YEARS, False),
    "retry_after": (0.1, True, YEARS, False),
    "deadline": (0.0, False, YEARS, True),
}
OPTIONAL = [*(name for name, bounds in SECONDS.items() if bounds[3]), "keepalive", "health", "health_token"]


def spelled(value: object) -> str:
    """A value as it is written in an environment variable or in a URL."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def made(name: str, value: Any) -> Any:
    """What a configuration with this one setting says."""
    return getattr(GuardConfig(**{name: value}), name)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except SettingError as refusal:
        return refusal


def told(name: str, value: object) -> str:
    """The value as an error may tell it."""
    return "(not shown)" if name == "health_token" else repr(value)


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """Some settings, with values within their bounds."""
    values: dict[str, st.SearchStrategy[Any]] = {
        "evict_readonly": st.booleans(),
        "health": st.sampled_from(["/-/db", "/Health", "/a,b"]) | st.none(),
        "health_token": st.sampled_from(["Only-4-us_no1234", "12345678901234567"]) | st.none(),
        "keepalive": st.tuples(st.integers(1, 32767), st.integers(1, 32767), st.integers(1, 127)) | st.none(),
    }
    for name, (low, inclusive, high, optional) in SECONDS.items():
        duration = st.floats(low, high, exclude_min=not inclusive)
        values[name] = duration | st.none() if optional else duration
    known = {name: value for name, value in values.items() if name in NAMES}
    return draw(st.fixed_dictionaries({}, optional=known))


@given(settings())
def test_values_within_bounds_are_taken_as_they_are(values: dict[str, Any]) -> None:
    config = GuardConfig(**values)
    assert {name: getattr(config, name) for name in values} == values
    assert replace(GuardConfig(), **{name: getattr(config, name) for name in values}) == config


@given(settings())
def test_text_says_the_same_as_a_value(values: dict[str, Any]) -> None:
    environ = {ENV_PREFIX + name.upper(): spelled(value) for name, value in values.items()}
    assert GuardConfig.load({}, environ) == GuardConfig(**values)


@given(
    st.sampled_from(NAMES),
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400)])
    | st.floats()
    | st.text()
    | st.binary()
    | st.lists(st.none() | st.integers() | st.booleans() | st.floats(), max_size=4)
    | st.tuples(st.integers(), st.integers(), st.integers()),
)
def test_any_value_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    taken = outcome(lambda: made(name, value))
    if isinstance(taken, SettingError):
        assert f"{name}={told(name, value)}: must be " in str(taken)
        return
    assert taken == (tuple(value) if isinstance(value, list) else value)
    if name in SECONDS and taken is not None:
        low, inclusive, high, _ = SECONDS[name]
        assert type(taken) is float
        assert low < taken <= high or (inclusive and taken == low)


@given(st.sampled_from(NAMES), st.text())
def test_any_text_is_taken_or_refused_by_its_source(name: str, text: str) -> None:
    value = outcome(lambda: parse(name, text, source="THE_SOURCE"))
    if isinstance(value, SettingError):
        assert f"THE_SOURCE={told(name, text)}: must be " in str(value)
    else:
        assert made(name, value) == value


@pytest.mark.parametrize("name", SECONDS)
def test_a_duration_just_outside_its_bounds_is_refused(name: str) -> None:
    low, inclusive, high, _ = SECONDS[name]
    below = math.nextafter(low, -math.inf) if inclusive else low
    for value in (below, math.nextafter(high, math.inf), -1, math.inf, -math.inf, math.nan, True, "30", (1, 2)):
        with pytest.raises(SettingError, match=f"^{name}={re.escape(repr(value))}: must be a number of seconds"):
            made(name, value)
    for value in (low if inclusive else math.nextafter(low, math.inf), high):
        assert made(name, value) == value


@pytest.mark.parametrize(
    "value",
    [
        *[(), (15,), (15, 5), (15, 5, 3, 1), (0, 5, 3), (15, 0, 3), (15, 5, 0), (32768, 5, 3), (15, 32768, 3)],
        *[(15, 5, 128), (15.0, 5, 3), (True, 5, 3), ("15", "5", "3"), "15,5,3", 15, {15, 5, 3}],
    ],
)
def test_an_impossible_keepalive_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^keepalive=.*: must be three whole numbers: .* 32767, .* 127; or none$"):
        GuardConfig(keepalive=value)


@pytest.mark.parametrize("value", [None, "true", "yes", 2, -1, 0.5])
def test_a_switch_that_is_neither_true_nor_false_is_refused(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^evict_readonly=.*: must be true or false"):
        GuardConfig(evict_readonly=value)


@pytest.mark.parametrize("value", [None, "true", "conflict", "Conflicts", b"conflicts", 1, ["conflicts"]])
def test_statuses_is_a_switch_or_a_word(value: Any) -> None:
    assert GuardConfig(statuses="conflicts").statuses == "conflicts"
    with pytest.raises(SettingError, match=r"^statuses=.*: must be true, false or conflicts$"):
        GuardConfig(statuses=value)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_can_be_switched_off_takes_none(name: str) -> None:
    if name in OPTIONAL:
        assert made(name, None) is None
        assert parse(name, " None ", source="x") is None
    else:
        with pytest.raises(SettingError, match=f"^{name}=None: must be "):
            made(name, None)
        with pytest.raises(SettingError, match=r"^x='none': must be "):
            parse(name, "none", source="x")


def test_keywords_come_before_the_environment_and_that_before_defaults() -> None:
    environ = {"WSGI_DBGUARD_PING_AFTER": "5", "WSGI_DBGUARD_PING_TIMEOUT": "1", "PING_TIMEOUT": "9"}
    config = GuardConfig.load({"ping_after": 7.0}, environ)
    assert config == GuardConfig(ping_after=7.0, ping_timeout=1.0)


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_DBGUARD_KEEPALIVE", "30, 10, 2")
    assert GuardConfig.load({}).keepalive == (30, 10, 2)
    assert GuardConfig().keepalive == (15, 5, 3)  # all of it in code: not read


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("False", False), ("on", True), ("OFF", False), ("1", True), ("0", False)]
)
def test_a_switch_is_told_in_the_usual_words(text: str, value: bool) -> None:
    assert GuardConfig.load({}, {"WSGI_DBGUARD_STATUSES": text}).statuses is value
    assert GuardConfig.load({}, {"WSGI_DBGUARD_EVICT_READONLY": text}).evict_readonly is value


@pytest.mark.parametrize(("text", "value"), [("SAFE", "safe"), ("off", "off"), ("Uncommitted", "uncommitted")])
def test_words_are_told_in_any_case(text: str, value: str) -> None:
    assert GuardConfig.load({}, {"WSGI_DBGUARD_REPLAY": text}).replay == value


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert GuardConfig.load({}, {"WSGI_DBGUARD_PING_AFTER": " "}) == GuardConfig()


def test_none_as_a_keyword_beats_the_environment() -> None:
    assert GuardConfig.load({"idle_timeout": None}, {"WSGI_DBGUARD_IDLE_TIMEOUT": "5"}).idle_timeout is None


@pytest.mark.parametrize("text", ["soon", "true", "nan", "-1", "1e999", "30s", "1,2"])
def test_a_variable_with_an_impossible_text_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(SettingError, match=f"^WSGI_DBGUARD_PING_AFTER={text!r}: must be a number of seconds"):
        GuardConfig.load({}, {"WSGI_DBGUARD_PING_AFTER": text})


def test_a_variable_with_an_impossible_text_is_refused_though_a_keyword_overrules_it() -> None:
    with pytest.raises(SettingError, match=r"^WSGI_DBGUARD_PING_AFTER='soon'"):
        GuardConfig.load({"ping_after": 1.0}, {"WSGI_DBGUARD_PING_AFTER": "soon"})


def test_an_unknown_setting_is_refused_with_those_that_there_are() -> None:
    there_are = "; there are: " + ", ".join(NAMES)
    with pytest.raises(SettingError, match=f"^unknown setting pingafter{there_are}$"):
        GuardConfig.load({"pingafter": 1.0}, {})
    with pytest.raises(SettingError, match=f"^unknown setting WSGI_DBGUARD_PINGAFTER{there_are}$"):
        GuardConfig.load({}, {"WSGI_DBGUARD_PINGAFTER": "1"})


def test_a_setting_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="ping_after"):
        GuardConfig(ping_after=-1)


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        GuardConfig().ping_after = 1.0  # type: ignore[misc]


def test_every_setting_says_what_it_means() -> None:
    for setting in fields(GuardConfig):
        assert setting.metadata["meaning"]
        assert setting.metadata["check"](setting.default) == setting.default
