"""What drivers hear beside the answers; that a real crash is heard by all of them is in test_faults.py."""

from __future__ import annotations

import pytest

from wsgi_dbguard.watch.notices import CRASH, crash, notices_of


def test_driver_that_tells_none_has_none() -> None:
    assert not notices_of(object())
    assert not crash(())


@pytest.mark.parametrize("notice", [f"WARNING:  {CRASH}\n", ("57P02", "in any language"), {b"C": b"57P02"}], ids=type)
def test_crash_is_told_in_words_or_by_its_code(notice: object) -> None:
    assert crash([("00000", "table does not exist, skipping"), notice])
    assert not crash(["WARNING:  terminating connection due to immediate shutdown command\n"])
