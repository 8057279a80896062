"""How time is measured: contenders in turns, many rounds, medians of differences within a round.

A checkout takes some microseconds, and a machine that does anything else, or changes its clock rate, is off by more.
So one sample of each contender is taken in each round, in another order each time, and what a contender adds is the
median over the rounds of its difference from `nothing` in the same round: whatever slows a round slows both. A sample
is a loop that lasts some milliseconds, garbage collection off. Spread is the middle half of the samples.

Two clocks run: the wall clock, which sees round trips, and the thread's CPU time, which does not see that another
process had the CPU. A row says which it shows: "CPU" where nothing waits for a server, "wall" everywhere else.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

__all__ = ["Clock", "Effort", "Elsewhere", "Goal", "Report", "Row", "Samples", "answer_samples", "measure"]

BASE = "nothing"
Clock = Literal["CPU", "wall"]
Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Effort:
    """How much is done. `seconds`: of one sample; `served`: these contenders only under servers; `load_lives`: how
    often a server of which the goals speak is started anew."""

    rounds: int
    seconds: float
    delays: tuple[float, ...] = (0.0, 0.0005, 0.001, 0.005)
    servers: tuple[str, ...] = ("gunicorn sync", "gunicorn gthread", "gunicorn gevent", "uWSGI")
    served_delays: tuple[float, ...] = (0.0, 0.001)
    served: tuple[str, ...] | None = None
    load_rounds: int = 5
    load_lives: int = 9
    load_seconds: int = 2
    engines: tuple[int, ...] = (1, 10, 100)
    starts: int = 5
    growth: tuple[int, ...] = (1, 10, 100)
    keys: tuple[int, ...] = (0, 10_000)


FULL = Effort(rounds=31, seconds=0.02)
QUICK = Effort(
    rounds=7,
    seconds=0.005,
    delays=(0.0, 0.001),
    servers=("gunicorn gthread",),
    load_rounds=2,
    load_lives=2,
    load_seconds=1,
    engines=(1, 10),
    starts=2,
    growth=(1, 10),
    keys=(0, 1_000),
)
SMOKE = Effort(
    rounds=2,
    seconds=0.0001,
    delays=(0.0,),
    servers=("gunicorn gthread",),
    served_delays=(0.0,),
    served=("nothing", "pool_pre_ping", "guard"),
    load_rounds=1,
    load_lives=1,
    load_seconds=1,
    engines=(1,),
    starts=1,
    growth=(1, 2),
    keys=(0, 10),
)


@dataclass
class Row:
    """One thing that was measured: the samples of all contenders, of the same rounds.

    `what` and `where` name it. With `more` a greater figure is a better one: throughput. `base` is what the ratios are
    of, where it is there.
    """

    what: str
    where: str
    unit: str
    samples: Samples
    clock: Clock | None = None
    more: bool = False
    base: str = BASE

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def spread(self, name: str) -> tuple[float, float]:
        """The quartiles."""
        values = self.samples[name]
        if len(values) < 2:
            return values[0], values[0]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, high

    def ratio(self, name: str, to: str | None = None) -> float:
        """The median of the ratios within a round."""
        to = to or self.base
        return statistics.median(a / b for a, b in zip(self.samples[name], self.samples[to], strict=True) if b)

    def adds(self, name: str, to: str | None = None) -> float:
        """The median of the differences within a round."""
        to = to or self.base
        return statistics.median(a - b for a, b in zip(self.samples[name], self.samples[to], strict=True))

    def as_dict(self) -> dict[str, Any]:
        figures: dict[str, dict[str, float | list[float]]] = {}
        for name in self.samples:
            figures[name] = {"median": self.median(name), "quartiles": list(self.spread(name))}
            if self.base in self.samples and name != self.base:
                figures[name] |= {"ratio": self.ratio(name), "adds": self.adds(name)}
        return {
            "what": self.what,
            "where": self.where,
            "unit": self.unit,
            "clock": self.clock,
            "rounds": len(next(iter(self.samples.values()))),
            "contenders": figures,
        }


@dataclass(frozen=True)
class Goal:
    """What a figure is to be: at most `bound`, or with `more` at least; and what it is for the least that does it."""

    text: str
    figure: float
    bound: float
    more: bool = False
    floor: float | None = None

    @property
    def met(self) -> bool:
        return self.figure >= self.bound if self.more else self.figure <= self.bound

    def as_dict(self) -> dict[str, Any]:
        return {"goal": self.text, "figure": self.figure, "bound": self.bound, "met": self.met, "floor": self.floor}


@dataclass
class Report:
    """What the parts find; `skipped` says what could not be measured here, and why. `tell` hears of each row."""

    tell: Callable[[str], object] = lambda line: None
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def row(self, what: str, where: str, samples: Samples, unit: str = "µs", **more: Any) -> Row:
        row = Row(what, where, unit, samples, **more)
        self.rows.append(row)
        self.tell(f"{what}, {where}")
        return row

    def goal(
        self,
        text: str,
        figure: float,
        *,
        most: float | None = None,
        least: float | None = None,
        floor: float | None = None,
    ) -> None:
        bound, more = (least, True) if least is not None else (most, False)
        assert bound is not None
        self.goals.append(Goal(text, figure, bound, more, floor))

    def skip(self, what: str, why: object) -> None:
        line = f"{what}: {why}"
        if line not in self.skipped:
            self.skipped.append(line)


class Elsewhere:
    """A contender in a process of its own: a script with these arguments that calls `answer_samples`.

    For what cannot be had beside the guard in one process. Between two processes there may be a few percent, one way or
    the other, by where things lie in memory.
    """

    def __init__(self, script: Path, *arguments: str) -> None:
        command = [sys.executable, str(script), *arguments]
        path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(command, env=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def sample(self, count: int) -> tuple[float, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(count, file=self._process.stdin, flush=True)
        wall, cpu = self._process.stdout.readline().split()
        return float(wall), float(cpu)


def answer_samples(call: Callable[[], object]) -> None:
    """The other end of `Elsewhere`: a sample for each line of stdin."""
    gc.collect()
    gc.disable()
    for line in sys.stdin:
        print(*_sample(call, int(line)), flush=True)
        gc.collect()


Contender = Callable[[], object] | Elsewhere


def measure(contenders: Mapping[str, Contender], effort: Effort) -> dict[Clock, Samples]:
    """Microseconds per call by each clock, one sample a round for each contender."""
    repeat = {name: _repeats(call, effort.seconds) for name, call in contenders.items()}
    found: dict[Clock, Samples] = {clock: {name: [] for name in contenders} for clock in ("wall", "CPU")}
    order: Sequence[str] = list(contenders)
    shuffle = random.Random(1).sample
    try:
        for _ in range(effort.rounds):
            gc.collect()
            gc.disable()
            for name in shuffle(order, len(order)):
                wall, cpu = _sample(contenders[name], repeat[name])
                found["wall"][name].append(wall)
                found["CPU"][name].append(cpu)
            gc.enable()
    finally:
        gc.enable()
    return found


def _repeats(call: Contender, seconds: float) -> int:
    """How many calls a sample has."""
    _sample(call, 1)
    count = 1
    while (took := _sample(call, count)[0] * count / 1e6) < seconds / 4:
        count *= 4
    return max(1, round(count * seconds / took))


def _sample(call: Contender, count: int) -> tuple[float, float]:
    if isinstance(call, Elsewhere):
        return call.sample(count)
    loop = range(count)
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    for _ in loop:
        call()
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return wall / count / 1000, cpu / count / 1000
