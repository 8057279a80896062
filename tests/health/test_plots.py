"""Plots tell the truth in shapes and in words."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

from wsgi_dbguard.health import plots
from wsgi_dbguard.health.snapshot import SLOTS


def database(*steps: list[int], in_use: int = 0, connections: int = 0) -> dict[str, Any]:
    """The last steps of one: in use, open, waiting, checkouts, away."""
    sums = Counter({"in_use": in_use, "connections": connections})
    whole = [[0] * 5 for _ in range(SLOTS - len(steps))] + [list(step) for step in steps]
    return {"name": "a<b>", "steps": whole, "known": len(steps), "sums": sums}


def svg(figure: str) -> ElementTree.Element:
    found = re.search("<svg.*</svg>", figure)
    assert found is not None
    return ElementTree.fromstring(found[0])


def bands(figure: str) -> list[tuple[str | None, str | None]]:
    return [(each.get("x"), each.get("width")) for each in svg(figure).iter("rect") if each.get("class") == "band"]


def test_words_are_of_now_and_of_the_most() -> None:
    figure = plots.connections(database([2, 5, 0, 10, 0], [1, 3, 0, 10, 0], in_use=1, connections=3), 0)
    assert "now 1 in use of 3 open; at most 2 in use and 5 open." in figure
    assert "away" not in svg(figure).attrib["aria-label"]
    assert "a<b>" in svg(figure).attrib["aria-label"]  # as markup it is escaped


def test_an_outage_is_a_band_where_it_was_and_two_are_two() -> None:
    away, well = [0, 0, 3, 0, 1], [1, 1, 0, 1, 0]
    figure = plots.connections(database(well, away, away, well, away), 0)
    assert bands(figure) == [(str(SLOTS - 4), "2"), (str(SLOTS - 1), "1")]
    assert "away in about 15 s of it" in figure
    assert "at most 3 requests waiting" in figure


def test_what_is_not_known_is_not_drawn() -> None:
    figure = plots.connections(database([1, 1, 0, 1, 0]), 0)
    area = svg(figure).find("path")
    assert area is not None
    assert area.attrib["d"] == f"M{SLOTS - 1} 3.0H{SLOTS}V100H{SLOTS - 1}Z"
    assert "NaN" not in plots.connections(database(), 0)


def test_a_rate_is_by_the_second_and_the_step_that_is_not_over_is_left_out() -> None:
    figure = plots.traffic(database([0, 0, 0, 50, 0], [0, 0, 0, 5, 0]), 0)
    assert "Now 10.0 a second, at most 10.0" in figure
