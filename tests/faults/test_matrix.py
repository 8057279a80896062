"""No fault that finds a connection in the pool fails a request of a guarded pool; none gives a wrong answer or a hang.

The same as `tests/faults/matrix.py` prints, as tests; but for `pool_pre_ping`, of which nothing is asserted.
"""

from collections.abc import Iterator

import pytest

from wsgi_dbguard.lab.contenders import Contender
from wsgi_dbguard.lab.drivers import Driver
from wsgi_dbguard.lab.fault import Fault, Moment
from wsgi_dbguard.lab.matrix import Outcome
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.rows import Rows, cells

# Of another version, in other words: what a server says of its end, and what it does by itself.
DEBIAN = {"backend killed, in the pool", "backend killed, during a query", "idle_session_timeout, in the pool"}
QUICK = {"backend killed, in the pool", "FIN, in the pool", "notification pending, in the pool"}


def cell(fault: Fault, driver: Driver) -> object:
    quick = fault.title in QUICK and driver.database == "postgresql"
    return pytest.param(fault, driver, id=f"{fault.title}, {driver.name}", marks=() if quick else pytest.mark.slow)


def outcome(rows: Rows, fault: Fault, driver: Driver, contender: Contender) -> Outcome:
    if reason := driver.missing():
        pytest.skip(reason)
    try:
        row = rows.play(fault, driver.database)
    except ServerMissing as missing:
        pytest.skip(str(missing))
    (found,) = [each for each in row if each.driver == driver and each.contender is contender]
    return found


@pytest.mark.parametrize(("fault", "driver"), [cell(*each) for each in cells()])
def test_guarded_pool_keeps_its_promises(rows: Rows, fault: Fault, driver: Driver) -> None:
    assert outcome(rows, fault, driver, Contender.GUARD).broken() == []


@pytest.fixture(scope="module")
def debian_rows() -> Iterator[Rows]:
    with Rows(contenders=[Contender.GUARD], system=True) as rows:
        yield rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "driver"),
    [cell(*each) for each in cells() if each[0].title in DEBIAN and each[1].database == "postgresql"],
)
def test_guarded_pool_keeps_its_promises_on_debians_postgresql(debian_rows: Rows, fault: Fault, driver: Driver) -> None:
    assert outcome(debian_rows, fault, driver, Contender.GUARD).broken() == []


@pytest.mark.parametrize(("fault", "driver"), [cell(*each) for each in cells() if each[0].breaks])
def test_fault_breaks_unguarded_pool(rows: Rows, fault: Fault, driver: Driver) -> None:
    unguarded = outcome(rows, fault, driver, Contender.NOTHING)
    if fault.moment is Moment.POOL:
        assert unguarded.failed + unguarded.hung > 0, unguarded
    else:
        assert unguarded.lost + unguarded.hung > 0, unguarded


@pytest.mark.parametrize(("fault", "driver"), [cell(*each) for each in cells() if each[0].breaks is False])
def test_healthy_connections_serve_without_guard_too(rows: Rows, fault: Fault, driver: Driver) -> None:
    unguarded = outcome(rows, fault, driver, Contender.NOTHING)
    assert (unguarded.failed, unguarded.wrong, unguarded.hung) == (0, 0, 0), unguarded
