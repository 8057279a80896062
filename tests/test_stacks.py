"""Where something happened: a line or the whole stack."""

from __future__ import annotations

import gc
import weakref

from sqlalchemy import create_engine, event

from wsgi_dbguard.stacks import Trace, place, render, stack


def test_a_place_is_the_line_outside_sqlalchemy() -> None:
    engine = create_engine("sqlite://")
    traces: list[Trace] = []
    event.listen(engine, "connect", lambda connection, entry: traces.append(place()))
    engine.connect().close()
    engine.dispose()
    # The listener itself is a line of this file.
    assert render(traces[0]).startswith(f"{__file__}:")
    assert "\n" not in render(traces[0])


def test_a_stack_is_written_as_a_traceback_is() -> None:
    def inner() -> Trace:
        return stack()

    lines = render(inner()).splitlines()
    assert lines[-2].startswith(f'  File "{__file__}", line ')
    assert lines[-2].endswith(".inner")
    assert lines[-1] == "    return stack()"
    assert lines[-3] == "    lines = render(inner()).splitlines()"


def test_of_a_deep_stack_the_innermost_frames_are_kept() -> None:
    def down(depth: int) -> Trace:
        return down(depth - 1) if depth else stack()

    trace = down(200)
    assert len(trace) == 100
    assert {function for _, _, function in trace} == {f"{down.__qualname__}"}


def test_no_frame_is_kept() -> None:
    class Thing:
        pass

    def take() -> tuple[Trace, weakref.ref[Thing]]:
        thing = Thing()
        return stack(), weakref.ref(thing)

    gc.disable()
    try:
        trace, reference = take()
        assert reference() is None
    finally:
        gc.enable()
    assert trace
