"""Prometheus: the guards' figures in an application's ``/metrics``. Needs the extra ``prometheus``. In wsgi.py::

    from wsgi_dbguard import DBGuard
    from wsgi_dbguard.metrics import prometheus

    application = DBGuard(application)
    prometheus.install()

They are then in what ``prometheus_client`` exposes; where an application has no such page yet, `application` is one, a
WSGI application to mount (``DispatcherMiddleware(application, {"/metrics": prometheus.application})``). Names are those
of `instruments` as OpenTelemetry's rules translate them: ``db_client_connection_count``,
``db_client_connection_wait_time_seconds_bucket``, ``wsgi_dbguard_retired_total``.

With several processes each scrape meets one of them. prometheus-client's multiprocess mode is for that: give the server
a directory that is empty when it starts, in the environment variable ``PROMETHEUS_MULTIPROC_DIR``. Each process then
writes its values down as they change, and any of them tells those of all. Gauges are of the living only, also after a
SIGKILL, and counters of a dead worker are carried on by its successor (`slots`). The hooks for gunicorn and uWSGI
remove the gauges of a worker that ended at once; without them that happens when `application` is asked, or when
another worker begins.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.mmap_dict import mmap_key
    from prometheus_client.multiprocess import MultiProcessCollector
except ImportError as error:
    raise ImportError(
        "wsgi_dbguard.metrics.prometheus needs prometheus-client: pip install 'wsgi-dbguard[prometheus]'"
    ) from error

from wsgi_dbguard import tally

from . import pools, slots
from .files import File
from .histograms import Histograms
from .instruments import BOUNDARIES, INSTRUMENTS, LIVELY, Instrument, State, read_process

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from prometheus_client.metrics_core import Metric

__all__ = ["application", "install", "metric_name", "uninstall"]

logger = logging.getLogger(__name__)

_BOUNDS = tuple("+Inf" if each == inf else repr(each) for each in (*BOUNDARIES, inf))
_PAUSES = (0.001, 0.01, 0.1)  # seconds, before a page is read again
_SUFFIX = {"counter": "_total", "updowncounter": "", "histogram": "_seconds"}


def metric_name(instrument: Instrument) -> str:
    """Its name in Prometheus, by OpenTelemetry's rules of translation."""
    return _translated(instrument.name) + _SUFFIX[instrument.kind]


def _translated(name: str) -> str:
    return name.replace(".", "_")


def _label_names(instrument: Instrument) -> list[str]:
    return [_translated(each) for each in instrument.labels]


def install(registry: CollectorRegistry = REGISTRY) -> None:
    """Export the figures of all guards of this process, and of those forked from it; at the second call, nothing.

    registry: of `prometheus_client`, not used in multiprocess mode.

    Raises:
        NotADirectoryError: if ``PROMETHEUS_MULTIPROC_DIR`` names none.
    """
    global _installed
    if _installed is not None:
        return
    directory = slots.directory()
    if directory is not None and not directory.is_dir():
        raise NotADirectoryError(f"PROMETHEUS_MULTIPROC_DIR={directory}: make this directory before the server starts")
    _installed = _OfOneProcess(registry) if directory is None else _OfSeveral(directory)
    pools.watch(_installed)


def uninstall() -> None:
    """Export nothing any more. For tests: in multiprocess mode, another `install` would count all once more."""
    global _installed
    installed, _installed = _installed, None
    if installed is not None:
        pools.unwatch(installed)
        installed.close()


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A page for Prometheus to scrape: of this process, or in multiprocess mode of all."""
    registry = REGISTRY if _installed is None else _installed.registry()
    page: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
    return page(environ, start_response)


class _OfOneProcess:
    """A collector: values are read when somebody asks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._histograms = Histograms()
        self._registry = registry
        registry.register(self)

    def registry(self) -> CollectorRegistry:
        return self._registry

    def note(self, instrument: Instrument, pool: str, seconds: float) -> None:
        self._histograms.note(instrument, pool, seconds)

    def changed(self, pool: str | None) -> None:
        self._histograms.settle()

    def reset(self) -> None:
        self._histograms.reset()

    def close(self) -> None:
        self._registry.unregister(self)

    def describe(self) -> Iterable[Metric]:
        return [_family(instrument) for instrument in INSTRUMENTS]

    def collect(self) -> Iterator[Metric]:
        families: dict[Instrument, Any] = {instrument: _family(instrument) for instrument in INSTRUMENTS}
        for instrument, labels, value in pools.readings():
            families[instrument].add_metric(labels, value)
        for instrument, pool, (*counts, total) in self._histograms.read():
            so_far = 0.0
            buckets = [(bound, so_far := so_far + count) for bound, count in zip(_BOUNDS, counts, strict=True)]
            families[instrument].add_metric([pool], buckets, total)
        yield from families.values()


def _family(instrument: Instrument) -> Metric:
    kinds = {"counter": CounterMetricFamily, "updowncounter": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    family: Metric = kinds[instrument.kind](
        metric_name(instrument), instrument.description, labels=_label_names(instrument)
    )
    return family


class _OfSeveral:
    """Values are written, as they change, where `MultiProcessCollector` reads those of all processes.

    With values of our own and not by prometheus-client's Counter and Gauge: their lock is the application's as well, so
    the garbage collector may come to write here in the middle of a section that this thread has locked; and it is held
    for ever in a child that was forked in the middle of one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._histograms = Histograms()
        self._slot: slots.Slot | None = None
        self._failed = False
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._todo: set[str | None] = set()  # pools whose values have changed, None: all
        self._files: dict[str, File] = {}
        self._values: dict[tuple[Instrument, tuple[str, ...], int], _Value] = {}
        self._settled: dict[str, object] = {}  # as it was written last
        self._tally: Counter[tuple[str, str]] | None = None

    def registry(self) -> CollectorRegistry:
        slots.reap(self._directory)
        registry = CollectorRegistry()
        _Collector(registry, path=str(self._directory))  # type: ignore[no-untyped-call]
        return registry

    def note(self, instrument: Instrument, pool: str, seconds: float) -> None:
        self._histograms.note(instrument, pool, seconds)

    def reset(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.close()
        for file in self._files.values():
            file.close()
        self._histograms.reset()
        self._renew()

    def close(self) -> None:
        with self._lock:
            self._failed = True
            self.reset()

    def changed(self, pool: str | None) -> None:
        """Write what has changed, or leave that to the one who is at it (see `Histograms`)."""
        self._todo.add(pool)
        while self._todo and self._lock.acquire(blocking=False):
            try:
                while self._todo:
                    name = self._todo.pop()
                    if not self._failed:
                        self._write(pools.names() if name is None else [name])
            except Exception as error:  # such as a directory that was removed: no reason to refuse a connection
                self._failed = True
                logger.warning(
                    "metrics of this process are not written any more: %s", error,  # says which file
                    exc_info=not isinstance(error, OSError),
                )  # fmt: skip
                with suppress(OSError):
                    slots.forget_gauges(self._slot)
            finally:
                self._lock.release()

    def _write(self, names: Iterable[str]) -> None:
        if self._slot is None:
            self._slot = slots.Slot(self._directory)
        for name in names:
            self._write_pool(name, *pools.look(name))
        if tally.counts != self._tally:
            self._tally = tally.counts.copy()
            for instrument, labels, number in read_process():
                self._set(instrument, labels, 0, number)
        for instrument, pool, part, number in self._histograms.news():
            self._set(instrument, (pool,), part, number)

    def _write_pool(self, name: str, state: State | None, before: pools.Counts) -> None:
        settled = (None if state is None else state.settled, before)
        known = self._settled.get(name)
        self._settled[name] = settled
        for (instrument, labels), number in pools.read(
            name, state, before, LIVELY if settled == known else INSTRUMENTS
        ).items():
            self._set(instrument, labels, 0, number)
        if state is None and settled != known:
            for instrument, labels, _ in list(self._values):
                if instrument.kind == "updowncounter" and instrument.of_pool is not None and labels[0] == name:
                    self._set(instrument, labels, 0, 0)

    def _set(self, instrument: Instrument, labels: tuple[str, ...], part: int, number: float) -> None:
        value = self._values.get((instrument, labels, part))
        if value is None:
            value = self._values[instrument, labels, part] = _Value(*self._place(instrument, labels, part))
        # A connection that is just being closed may be missing from a count for a moment.
        if number > value.number or (number < value.number and instrument.kind == "updowncounter"):
            value.number = number
            value.file.set(value.key, value.base + number)

    def _place(self, instrument: Instrument, labels: tuple[str, ...], part: int) -> tuple[File, str]:
        """The file and the key in it: of a histogram that of a bucket, or after these that of the sum."""
        family, names = _translated(instrument.name), _label_names(instrument)
        name, kind = metric_name(instrument), str(instrument.kind)
        if kind == "histogram":
            family = name
            if part < len(_BOUNDS):
                name, names, labels = f"{name}_bucket", [*names, "le"], (*labels, _BOUNDS[part])
            else:
                name = f"{name}_sum"
        elif kind == "updowncounter":
            kind = "gauge_livesum"
        file = self._files.get(kind)
        if file is None:
            assert self._slot is not None
            file = self._files[kind] = File(self._directory / f"{kind}_{self._slot.name}.db")
        return file, mmap_key(family, name, names, list(labels), instrument.description)


class _Value:
    """A number in a file: ours, and under it what another process that is gone has left there."""

    __slots__ = ("base", "file", "key", "number")

    def __init__(self, file: File, key: str) -> None:
        self.file, self.key = file, key
        self.base = file.get(key)
        self.number = 0.0


class _Collector(MultiProcessCollector):
    """Reads again what the application's own metrics were just about to make: prometheus-client sizes a file later."""

    def collect(self) -> Iterable[Metric]:
        for pause in _PAUSES:
            with suppress(struct.error, ValueError, RuntimeError, FileNotFoundError):
                return self._read()
            time.sleep(pause)
        return self._read()

    def _read(self) -> Iterable[Metric]:
        files = []
        for each in Path(self._path).glob("*.db"):
            with suppress(FileNotFoundError):
                if each.stat().st_size:
                    files.append(str(each))
        merged: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return merged


_installed: _OfOneProcess | _OfSeveral | None = None
