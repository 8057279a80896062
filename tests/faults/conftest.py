"""A driver with a server for it, the servers of the matrix, and silence about what is broken on purpose."""

import logging
from collections.abc import Iterator

import pytest

from wsgi_dbguard.lab.contenders import Contender
from wsgi_dbguard.lab.drivers import DRIVERS
from wsgi_dbguard.lab.peers import Peer, Peers
from wsgi_dbguard.lab.provision import ServerMissing
from wsgi_dbguard.lab.rows import Rows

UNGUARDED = "test_without_the_guard"
ASSERTED = (Contender.NOTHING, Contender.GUARD)


@pytest.fixture(scope="session")
def rows() -> Iterator[Rows]:
    """All rows of the matrix, of `ASSERTED`; each is played when it is first asked for."""
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # pg8000's close() of a dead connection fails
    with Rows(contenders=ASSERTED) as all_rows:
        yield all_rows


@pytest.fixture(scope="session")
def peers() -> Iterator[Peers]:
    """Servers, plain and encrypted, that no test stops or breaks; each starts when it is first asked for."""
    with Peers() as peers:
        yield peers


@pytest.fixture
def peer(request: pytest.FixtureRequest, peers: Peers) -> Peer:
    """A driver and a server for it: of each driver, for a module whose `TLS` is true encrypted as well.

    What happens without the guard is shown plainly, by tests that begin with `UNGUARDED`.

    Tests of those in the module's `QUICK` are quick when plain, all others slow. `PEERS` names the drivers, if not all.
    """
    driver, tls = request.param
    try:
        return peers(driver, tls=tls)
    except ServerMissing as missing:
        pytest.skip(str(missing))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module
    if "peer" not in metafunc.fixturenames or not hasattr(module, "QUICK"):
        return
    both = getattr(module, "TLS", False) and not metafunc.function.__name__.startswith(UNGUARDED)
    peers = [
        pytest.param(
            (name, tls),
            id=f"{'tls' if tls else 'plain'}-{name}" if both else name,
            marks=() if name in module.QUICK and not tls else pytest.mark.slow,
        )
        for tls in ((False, True) if both else (False,))
        for name in getattr(module, "PEERS", [driver.name for driver in DRIVERS])
    ]
    metafunc.parametrize("peer", peers, indirect=True)
