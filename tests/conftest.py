"""What holds for every property test, however busy the machine."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

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
