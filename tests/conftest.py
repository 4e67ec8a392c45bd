"""What holds for every test, whoever runs it and however busy the machine: property tests, and signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from asid.signals import ENDINGS

# A verdict about the code, not about the host: that an example, or drawing one, took long is no failure. Settings of a
# single test change what they name and inherit the rest. In CI the same code gets the same examples, and so the same
# verdict; elsewhere every run draws others.
settings.register_profile(
    "asid",
    deadline=None,
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("asid")


@pytest.fixture(scope="session", autouse=True)
def heed_signals() -> Iterator[None]:
    """Processes that tests start heed signals as in a terminal. Under nohup, or behind a shell's `&`, some are ignored,
    and whoever is started inherits that; a handler that does nothing is the same for the tests and is not inherited.
    """
    kept = {signum: signal.getsignal(signum) for signum in ENDINGS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
    for signum, handler in kept.items():
        if handler == signal.SIG_IGN:
            signal.signal(signum, lambda *_: None)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for signum, handler in kept.items():
        signal.signal(signum, handler)
