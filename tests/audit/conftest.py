"""The tale that most tests of the audit begin with."""

from __future__ import annotations

import pytest
from audit_tale import Tale


@pytest.fixture
def tale() -> Tale:
    """Two siblings and one VM, policy asi."""
    return Tale()
