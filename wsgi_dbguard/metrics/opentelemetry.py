"""OpenTelemetry: the guards' figures as instruments of its API. Needs the extra ``opentelemetry``. In wsgi.py::

    from wsgi_dbguard import DBGuard
    from wsgi_dbguard.metrics import opentelemetry

    application = DBGuard(application)
    opentelemetry.install()

What becomes of them is for your MeterProvider to say, which may be set later. Set it in the worker, after the fork, as
OpenTelemetry's own pages ask for: in gunicorn's ``post_fork``, or in wsgi.py where each worker loads it. Counters and
gauges are right in a child whatever you do, since they are asked for when they are read; but what a provider has
already taken of a histogram it takes along into the child. Let processes differ in a resource attribute
(``service.instance.id``), else a backend takes them for one.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

try:
    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation, get_meter_provider
except ImportError as error:
    raise ImportError(
        "wsgi_dbguard.metrics.opentelemetry needs opentelemetry-api: pip install 'wsgi-dbguard[opentelemetry]'"
    ) from error

import wsgi_dbguard

from . import pools
from .instruments import BOUNDARIES, INSTRUMENTS, POOL_NAME, Instrument

__all__ = ["install", "uninstall"]

_MANY = 1000  # notes, after which they are recorded though nobody has asked
_PATIENCE = 1.0  # seconds
_MOST = 100_000  # notes that are kept, if recording hangs


def install(meter_provider: MeterProvider | None = None) -> None:
    """Export the figures of all guards of this process, and of those forked from it; at the second call, nothing.

    meter_provider: None is the global one, also one that is set later.
    """
    global _installed
    if _installed is None:
        _installed = _Exporter(get_meter_provider() if meter_provider is None else meter_provider)
        pools.watch(_installed)


def uninstall() -> None:
    """Export nothing any more. The instruments stay with their provider, and have nothing to tell."""
    global _installed
    installed, _installed = _installed, None
    if installed is not None:
        pools.unwatch(installed)
        installed.closed = True


class _Exporter:
    def __init__(self, provider: MeterProvider) -> None:
        self.closed = False
        self._histograms: dict[Instrument, Histogram] = {}
        self.reset()
        meter = provider.get_meter("wsgi_dbguard", wsgi_dbguard.__version__)
        for each in INSTRUMENTS:
            texts = {"unit": each.unit, "description": each.description}
            if each.kind == "histogram":
                self._histograms[each] = meter.create_histogram(
                    each.name, **texts, explicit_bucket_boundaries_advisory=BOUNDARIES
                )
            elif each.kind == "counter":
                meter.create_observable_counter(each.name, [self._observer(each)], **texts)
            else:
                meter.create_observable_up_down_counter(each.name, [self._observer(each)], **texts)

    def reset(self) -> None:
        self._notes: deque[tuple[Instrument, str, float]] = deque(maxlen=_MOST)
        self._lock = threading.Lock()

    def note(self, instrument: Instrument, pool: str, seconds: float) -> None:
        # Not recorded here: a provider has locks. The garbage collector may come here in the middle of a section that
        # this thread has locked, and in a forked child one may be held for ever by a thread that is not there.
        self._notes.append((instrument, pool, seconds))
        if len(self._notes) > _MANY and not self._lock.locked():
            with suppress(RuntimeError):  # out of threads, or the interpreter ends
                _thread.start_new_thread(self._record, ())

    def changed(self, pool: str | None) -> None:
        """Nothing: values are read when somebody asks."""

    def _record(self, patience: float = 0.0) -> None:
        """Tell the provider what was noted. Where somebody is at it that is waited for, `patience` seconds at most."""
        notes = self._notes
        if self._lock.acquire(timeout=patience):
            try:
                while notes:
                    instrument, pool, seconds = notes.popleft()
                    self._histograms[instrument].record(seconds, {POOL_NAME: pool})
            finally:
                self._lock.release()

    def _observer(self, instrument: Instrument) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            self._record(patience=_PATIENCE)
            if self.closed:
                return []
            return [
                Observation(value, dict(zip(instrument.labels, labels, strict=True)))
                for each, labels, value in pools.readings()
                if each is instrument
            ]

        return observe


_installed: _Exporter | None = None
