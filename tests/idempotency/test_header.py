"""The Idempotency-Key header: what is a key, and what is malformed."""

from __future__ import annotations

import re
from string import ascii_letters, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_dbguard.idempotency import parse_key

KEYS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255)
WORDS = st.text(ascii_letters + digits + "-_.:/+=~", min_size=1, max_size=255)
PARAMETERS = st.lists(
    st.sampled_from([";a", "; a=1", ";a=-1.5", ";a=?0", ';a="b;\\"c"', ";*a=token", ";a=:cHJldGVuZA==:", ";a=*x"])
).map("".join)


def quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(KEYS, PARAMETERS, st.text(" \t", max_size=2))
def test_every_string_is_read_as_it_was_written(key: str, parameters: str, blank: str) -> None:
    assert parse_key(blank + quoted(key) + parameters + blank) == key


@given(WORDS)
def test_a_bare_word_is_the_same_key_as_the_string(word: str) -> None:
    assert parse_key(word) == parse_key(quoted(word)) == word


@given(st.text())
def test_whatever_comes_is_a_key_or_malformed(value: str) -> None:
    try:
        key = parse_key(value)
    except ValueError:
        return
    assert re.fullmatch(r"[\x20-\x7e]{1,255}", key)
    assert parse_key(quoted(key)) == key


@given(KEYS, st.integers(0, 300))
def test_a_string_that_is_cut_off_is_malformed(key: str, at: int) -> None:
    whole = quoted(key)
    cut = whole[: 1 + at % (len(whole) - 1)]
    with pytest.raises(ValueError, match="string"):
        parse_key(cut)


@given(KEYS, KEYS)
def test_two_headers_that_a_server_joined_are_malformed(one: str, other: str) -> None:
    with pytest.raises(ValueError, match="string"):
        parse_key(f"{quoted(one)}, {quoted(other)}")


LONG = "a" * 256
MALFORMED = [
    *("", " ", '""', '"', '"a', 'a"', '"a" b', "a b", "a, b", '"a"; ', '"a";A=1', '"a";b=', '"ä"', "ä"),
    *('"a\\b"', "a;b=1", LONG, f'"{LONG}"', '"a\n"', "a\x00"),
]


@pytest.mark.parametrize("value", MALFORMED)
def test_malformed(value: str) -> None:
    with pytest.raises(ValueError, match=r"key|string"):
        parse_key(value)
