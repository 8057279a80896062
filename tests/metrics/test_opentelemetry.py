"""OpenTelemetry, by its SDK in memory: names, units and kinds are the conventions', figures are the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Sum
from opentelemetry.semconv._incubating.metrics import db_metrics
from sqlalchemy import Engine, exc

from wsgi_dbguard import guard, tally
from wsgi_dbguard.lab.postgres import PostgreSQL
from wsgi_dbguard.lab.process import wait_until
from wsgi_dbguard.metrics import instruments, opentelemetry

MakeEngine = Callable[..., Engine]
Figures = Callable[[], dict[str, Any]]


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    tally.reset()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    opentelemetry.install(provider)
    yield reader
    opentelemetry.uninstall()
    provider.shutdown()


@pytest.fixture
def figures(reader: InMemoryMetricReader) -> Figures:
    """Sums by name, and by name and the values of the attributes but the pool's; the counts of histograms."""

    def figures() -> dict[str, Any]:
        found: dict[str, Any] = {}
        data = reader.get_metrics_data()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data is not None else []:
            for point in metric.data.data_points:
                value = point.count if hasattr(point, "count") else point.value
                attributes = sorted((point.attributes or {}).items())
                values = [str(each) for name, each in attributes if name != instruments.POOL_NAME]
                for key in {metric.name, " ".join([metric.name, *values])}:
                    found[key] = found.get(key, 0) + value
        return found

    return figures


@pytest.fixture
def engine(reader: InMemoryMetricReader, postgres: PostgreSQL, make_engine: MakeEngine) -> Engine:
    engine = make_engine(postgres.url(application_name="measured"), pool_size=3, max_overflow=2, pool_timeout=0.05)
    guard(engine)
    return engine


def test_names_units_and_kinds_are_those_of_the_conventions(reader: InMemoryMetricReader, engine: Engine) -> None:
    engine.raw_connection().close()
    data = reader.get_metrics_data()
    assert data is not None
    told = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert told.keys() == {each.name for each in instruments.INSTRUMENTS}

    conventions = MeterProvider([theirs := InMemoryMetricReader()])
    meter = conventions.get_meter("conventions")
    for name in [each for each in told if each.startswith("db.")]:
        made = getattr(db_metrics, "create_" + name.replace(".", "_"))(meter)
        (made.record if hasattr(made, "record") else made.add)(1)
    expected = theirs.get_metrics_data()
    conventions.shutdown()
    assert expected is not None
    for metric in expected.resource_metrics[0].scope_metrics[0].metrics:
        ours = told[metric.name]
        assert (ours.unit, type(ours.data)) == (metric.unit, type(metric.data))
        assert (metric.description or "")[:40] == (ours.description or "")[:40]
        if isinstance(metric.data, Sum) and isinstance(ours.data, Sum):
            assert ours.data.is_monotonic == metric.data.is_monotonic
    for metric in told.values():
        for point in metric.data.data_points:
            of_process = instruments.POOL_NAME not in (point.attributes or {})
            assert of_process == (metric.name in {"wsgi_dbguard.severed", "wsgi_dbguard.leaks", "wsgi_dbguard.replays"})
            if isinstance(point, HistogramDataPoint):
                assert point.explicit_bounds == instruments.BOUNDARIES


def test_connections_are_those_that_the_server_has_through_dispose(
    engine: Engine, figures: Figures, postgres: PostgreSQL, open_at: Callable[[PostgreSQL], int]
) -> None:
    with engine.connect(), engine.connect():
        assert figures()["db.client.connection.count used"] == 2
        # Those of the test before may take a moment to go.
        wait_until(lambda: open_at(postgres) == 2, timeout=60, what="two connections")
    told = figures()
    assert (told["db.client.connection.count used"], told["db.client.connection.count idle"]) == (0, 2)
    assert (told["db.client.connection.max"], told["db.client.connection.idle.max"]) == (5, 3)
    engine.dispose()
    engine.raw_connection().close()
    told = figures()
    assert told["db.client.connection.count"] == 1
    assert told["wsgi_dbguard.checkouts"] == 3
    assert told["db.client.connection.create_time"] == told["wsgi_dbguard.connects"] == 3
    assert told["db.client.connection.wait_time"] == told["db.client.connection.use_time"] == 3


def test_timeouts_checks_and_causes_are_told(
    engine: Engine, figures: Figures, postgres: PostgreSQL, fill: Callable[[Engine, int], list[int]]
) -> None:
    connections = [engine.connect() for _ in range(5)]
    with pytest.raises(exc.TimeoutError):
        engine.connect()
    for each in connections:
        each.close()
    postgres.terminate(*fill(engine, 3))
    engine.raw_connection().close()
    told = figures()
    assert told["db.client.connection.timeouts"] == 1
    assert told["db.client.connection.pending_requests"] == 0
    assert told["wsgi_dbguard.checks dead socket"] == told["wsgi_dbguard.retired dead"] == 1


def test_many_notes_do_not_wait_until_somebody_asks(engine: Engine, figures: Figures) -> None:
    for _ in range(1500):
        engine.raw_connection().close()
    told = figures()
    assert told["db.client.connection.wait_time"] == told["db.client.connection.use_time"] == 1500


def test_without_a_provider_nothing_piles_up(
    postgres: PostgreSQL, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opentelemetry.install(NoOpMeterProvider())
    try:
        engine = make_engine(postgres.url())
        guard(engine)
        for _ in range(1500):
            engine.raw_connection().close()
        assert opentelemetry._installed is not None
        assert len(opentelemetry._installed._notes) < 2500
    finally:
        opentelemetry.uninstall()


def test_a_provider_that_is_set_after_the_fork_knows_nothing_of_the_parent(
    postgres: PostgreSQL, run_python: Callable[..., str]
) -> None:
    program = """
import os, sys
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import create_engine
from wsgi_dbguard import guard
from wsgi_dbguard.metrics import opentelemetry
import logging, warnings
warnings.simplefilter("ignore")
logging.disable()

opentelemetry.install()
engine = create_engine(sys.argv[1])
guard(engine)
for _ in range(3):
    engine.raw_connection().close()
ours, theirs = os.pipe()
if not os.fork():
    set_meter_provider(MeterProvider([reader := InMemoryMetricReader()]))
    engine.raw_connection().close()
    metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    told = {
        each.name: sum(getattr(point, "count", None) or point.value for point in each.data.data_points)
        for each in metrics
    }
    names = ["wsgi_dbguard.checkouts", "wsgi_dbguard.severed"]
    names += ["db.client.connection." + name for name in ("count", "wait_time", "use_time", "create_time")]
    os.write(theirs, repr([told[name] for name in names]).encode())
    os._exit(0)
os.wait()
print(os.read(ours, 1000).decode())
engine.dispose()
"""
    assert run_python(program, postgres.url()) == "[1, 1, 1, 1, 1, 1]\n"
