from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer

from wsgi_dbguard import SettingError
from wsgi_dbguard.routing.positions import Lsn, MySQLGtids
from wsgi_dbguard.routing.tokens import Token, Tokens

NOTHING = Token()
lsns = st.builds(Lsn, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))


def tokens(*secrets: str | bytes, lifetime: float = 60.0, name: str = "db-position") -> Tokens:
    return Tokens(secrets or ("secret",), name=name, lifetime=lifetime)


def text_of(token: Token, signer: Tokens | None = None) -> str:
    text = (signer or tokens()).dump(token)
    assert text is not None
    return text


def position(token: Token) -> str:
    return str(token.position)


@given(lsns, st.floats(0, 2e9))
def test_what_is_signed_comes_back(lsn: Lsn, pinned: float) -> None:
    back = tokens().load([text_of(Token(lsn, pinned))])
    assert position(back) == str(lsn)
    assert back.pinned == pytest.approx(pinned, abs=0.001)


@given(st.lists(lsns, min_size=1, max_size=4))
def test_of_several_the_highest_counts(several: list[Lsn]) -> None:
    back = tokens().load(text_of(Token(each)) for each in several)
    highest = Lsn(max(each.value for each in several), max(each.timeline for each in several))
    assert position(back) == str(highest)


@given(st.text())
def test_what_is_no_token_counts_as_none(text: str) -> None:
    assert tokens().load([text]) == NOTHING


@given(lsns, st.floats(0, 0.99))
def test_a_truncated_token_counts_as_none(lsn: Lsn, part: float) -> None:
    text = text_of(Token(lsn))
    assert tokens().load([text[: int(part * len(text))]]) == NOTHING


@given(lsns, st.floats(0, 0.99), st.sampled_from("ABCabc012-_."))
def test_a_forged_token_counts_as_none(lsn: Lsn, part: float, other: str) -> None:
    text = text_of(Token(lsn))
    # Not the last character: of that base64 takes some bits only.
    place = int(part * (len(text) - 1))
    forged = text[:place] + other + text[place + 1 :]
    if forged != text:
        assert tokens().load([forged]) == NOTHING


@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each))
)
def test_anything_else_that_is_signed_counts_as_none(content: object) -> None:
    signer = tokens()
    text = signer._serializer.dumps(content)
    assert isinstance(text, str)
    assert signer.load([text]).position is None


def test_a_bad_token_takes_nothing_from_a_good_one() -> None:
    assert position(tokens().load(["bad", text_of(Token(Lsn(7))), ""])) == "0/7"


def test_an_expired_token_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(Token(Lsn(7)))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 59.0)
    assert position(tokens().load([text])) == "0/7"
    monkeypatch.setattr(time, "time", lambda: now + 61.0)
    assert tokens().load([text]) == NOTHING


def test_a_token_of_a_host_whose_clock_is_ahead_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(Token(Lsn(7)))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 5.0)
    assert position(tokens().load([text])) == "0/7"


def test_secrets_are_rotated() -> None:
    old, both, new = tokens("old"), tokens("new", b"old"), tokens("new")
    assert position(both.load([text_of(Token(Lsn(7)), old)])) == "0/7"
    assert position(new.load([text_of(Token(Lsn(7)), both)])) == "0/7"
    assert new.load([text_of(Token(Lsn(7)), old)]) == NOTHING


def test_tokens_of_another_name_or_use_of_the_secret_count_as_none() -> None:
    assert tokens().load([text_of(Token(Lsn(7)), tokens(name="other"))]) == NOTHING
    assert tokens().load([str(URLSafeSerializer("secret").dumps(["0/7", time.time(), 0]))]) == NOTHING


def test_what_the_primary_tells_later_takes_the_place_of_what_it_told() -> None:
    earlier = Token(Lsn(9, 1), 5.0)  # lost in a failover
    later = Token(Lsn(7, 2)).after(earlier)
    assert (position(later), later.pinned) == ("0/7/2", 5.0)
    pin = Token(None, 6.0).after(earlier)
    assert (position(pin), pin.pinned) == ("0/9/1", 6.0)


def test_the_new_position_is_kept_where_the_old_one_is_another_databases() -> None:
    old = Token(MySQLGtids.parse("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5"), 5.0)
    joined = Token(Lsn(7)).join(old)
    assert (position(joined), joined.pinned) == ("0/7", 5.0)


def test_a_position_that_is_too_long_for_a_cookie_gives_no_token() -> None:
    sources = {f"{n * 7919:08x}-71ca-11e1-9e33-{n * 104729:012x}": [(n, n * 31)] for n in range(1, 400)}
    assert tokens().dump(Token(MySQLGtids(sources))) is None


@pytest.mark.parametrize("secret", ["", b"", [], ["good", ""], [None]])
def test_no_secret_is_refused(secret: object) -> None:
    with pytest.raises(SettingError, match="secret"):
        Tokens(secret, name="x", lifetime=1.0)  # type: ignore[arg-type]
