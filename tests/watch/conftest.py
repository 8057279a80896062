"""A watch that a test follows from round to round."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from wsgi_dbguard.watch import Beat, Heart, Target

from .following import LONGEST, PATIENT, Step


@pytest.fixture
def follow() -> Callable[..., Heart]:
    """`follow(url, step, …)`: watches; after a round that satisfies a step's condition, does what the step says.

    The watch ends with the last step. No fault lasts for a time: it lasts until the beats have seen it.
    """

    def follow(url: str, *steps: Step, **settings: Any) -> Heart:
        left = list(steps)
        stop = threading.Event()

        def tell(beats: Sequence[Beat]) -> None:
            if left and left[0][0](beats):
                left.pop(0)[1]()
            if not left:
                stop.set()

        with Heart(Target.parse(url), **{"interval": 0.1, "timeout": PATIENT, **settings}) as heart:
            heart.run(seconds=LONGEST, stop=stop, tell=tell)
        assert not left, f"{len(left)} steps were not reached: {heart.beats[-3:]}"
        return heart

    return follow
