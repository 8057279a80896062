"""The report: one file that needs nothing else, whose plots show failures where the fault is marked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.chromium import Browser, program
from wsgi_dbguard.lab.load import Answer
from wsgi_dbguard.lab.report import COLORS, page
from wsgi_dbguard.lab.slots import figures_of
from wsgi_dbguard.lab.timeline import Span, Timeline, Track


@pytest.fixture(scope="module")
def html() -> str:
    """A minute in which `nothing` failed from 13 s to 15 s, and the guard but for one order."""

    def answers(*, fails: bool) -> list[Answer]:
        return [
            Answer(f"{number}", "failed", "500", number / 25, 0.1, "<b>why</b>")
            if fails and 13 <= number / 25 < 15
            else Answer(f"{number}", "ok", "200", number / 25, 0.01, "")
            for number in range(1500)
        ]

    order = Answer("1", "failed", "503", 13.5, 0.1, "urn:wsgi-dbguard:unavailable")
    tracks = [
        Track("nothing", {"GET": answers(fails=True), "POST": []}, opened=[13.1]),
        Track("guard", {"GET": answers(fails=False), "POST": [order]}, opened=[]),
    ]
    return page(figures_of(Timeline(60.0, [Span("restart", 13.0, 15.0)], tracks, "18.0")))


def test_headlines_tell_what_failed(html: str) -> None:
    guard, nothing = re.findall(r'<div class="row" id="(.*?)</h2>(.*?)</p>', html, re.DOTALL)
    assert guard[0].startswith("guard")
    assert "all 1,500 pages answered" in guard[1]
    assert nothing[0].startswith("nothing")
    assert "50 of 1,500 pages failed" in nothing[1]
    assert "Its connection broke in the middle of an order" in html
    assert html.count("<svg") == 3  # the time axis, and a plot for each


def test_figures_are_in_the_page(html: str) -> None:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    figures = json.loads(found[1])
    assert figures["contenders"]["nothing"]["pages"]["failed"] == 50
    assert sum(figures["contenders"]["nothing"]["slots"]["failed"]) == 50


def test_nothing_is_loaded_and_nothing_runs(html: str) -> None:
    told = re.sub(r'xmlns(:\w+)?="http[^"]*"|<!DOCTYPE.*?>', "", html)
    assert not re.search(r'(src|href)="(?!#)|url\((?!#)|@import', told)
    assert html.count("<script") == 1
    assert len(html) < 200_000


@pytest.mark.slow
@pytest.mark.skipif(program() is None, reason="no chromium: apt-get install chromium")
def test_failures_are_drawn_where_the_fault_is_marked(html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html)
    shot = tmp_path / "shot.png"
    with Browser(tmp_path) as browser:
        browser.look(width=1300, height=900)
        browser.open((tmp_path / "report.html").as_uri())
        browser.shot(shot)
        assert browser.errors == []
    pixels = (imread(shot)[:, :, :3] * 255).round().astype(int)

    def drawn(kind: str, left: int) -> list[tuple[int, int, int]]:
        """Lines with more of that colour than the key has, right of the headlines: y, first and last x."""
        color = [int(COLORS[kind][at : at + 2], 16) for at in (1, 3, 5)]
        lines = []
        for y, line in enumerate(abs(pixels - color).max(axis=2) < 3):
            at = line[left:].nonzero()[0] + left
            if len(at) > 20:
                lines.append((y, int(at[0]), int(at[-1])))
        return lines

    well = drawn("ok", 250)
    begun, ended = min(first for _, first, _ in well), max(last for *_, last in well)
    failed = drawn("failed", begun)
    for _, first, last in failed:
        assert (first - begun) / (ended - begun) == pytest.approx(13 / 60, abs=0.01)
        assert (last - begun) / (ended - begun) == pytest.approx(15 / 60, abs=0.01)
    # A plot for each contender; the lower one is red for two seconds, from top to bottom.
    assert 20 < len(failed) == len(well) // 2
    assert min(y for y, *_ in failed) > min(y for y, *_ in well)
