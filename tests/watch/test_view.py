"""What people see of the beats."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from wsgi_dbguard.watch import Beat, Fault, Trouble, Verdict, Way
from wsgi_dbguard.watch.view import chart, figures, line, screen, verdict_text

ERROR = "server closed the connection unexpectedly [/red]"
KEPT = Beat(way=Way.KEPT, number=1, at=1.0, took=0.5, trouble=Trouble.BROKEN, error=ERROR, held=True)
POOL = Beat(way=Way.POOL, number=1, at=1.0, took=0.002, replaced={"dead": 2})
FRESH = Beat(way=Way.FRESH, number=1, at=1.5, took=0.008, uptime=60.0)
ROUND = [KEPT, POOL, FRESH]


def test_a_round_is_a_line_and_one_for_each_thing_that_happened() -> None:
    assert line(ROUND, clock="12:00:01").splitlines() == [
        "12:00:01  fresh 8.0 ms          kept BROKEN          pool 2.0 ms",
        f"          kept: {ERROR}",
        "          pool: the guard replaced 2 dead",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("rounds", [0, 1, 500])
def test_screen_fits_the_terminal(width: int, rounds: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(screen(ROUND * rounds, title="postgresql://" + 100 * "x", width=width))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    shown = min(rounds, width - 9)
    assert any(each.rstrip() == "kept    " + "x" * shown or not rounds for each in lines)
    assert any(each.rstrip() == "pool    " + "r" * shown or not rounds for each in lines)
    assert (not rounds) or ERROR[:20] in console.file.getvalue()


@pytest.mark.parametrize("width", [60, 79, 80])
def test_a_way_is_a_row_of_one_line_however_slow(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    slow = [Beat(way=way, number=1, at=1.0, took=2.9876) for way in Way]
    console.print(screen(slow * 100, title="", width=width))
    assert isinstance(console.file, io.StringIO)
    rows = [each for each in console.file.getvalue().splitlines() if each.startswith("│")]
    assert len(rows) == 3
    assert all(way in row and "2987.6" in row for way, row in zip(("fresh", "kept", "pool"), rows, strict=True))


def test_bars_are_as_high_as_the_latencies() -> None:
    beats = [Beat(way=Way.FRESH, number=n, at=n, took=took) for n, took in enumerate([0.0, 0.5, 0.99, 1.0])]
    assert chart(beats, 1.0).plain == "▁▅██"
    assert chart(beats[:1], 0.0).plain == "▁"


def test_figures() -> None:
    assert figures(ROUND * 3, Way.FRESH) == {
        "beats": 3, "failed": 0, "replaced": 0, "last_ms": 8.0, "median_ms": 8.0, "slowest_ms": 8.0,
    }  # fmt: skip
    assert figures(ROUND, Way.KEPT)["failed"] == 1
    assert figures(ROUND, Way.KEPT)["median_ms"] is None
    assert figures(ROUND, Way.POOL)["replaced"] == 2


def test_verdict_comes_with_its_evidence() -> None:
    assert verdict_text(Verdict(Fault.CLIENT, ("a", "b"))) == "Verdict: Client (pool) fault\n  - a\n  - b"
