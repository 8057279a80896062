"""What a test holds, it lets go: a server that it has stopped, a table that it has locked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def let_go(release: Callable[[], object], *, after: float) -> Iterator[None]:
    """Calls `release` at the end, and once more if that does not come within `after` seconds.

    So whoever waits for what is held does not wait for ever, and a test whose end waits for them fails.
    """
    late = threading.Timer(after, release)
    late.start()
    try:
        yield
    finally:
        late.cancel()
        late.join()
        release()
