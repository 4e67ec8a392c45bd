"""What the tests of page tables and spaces share: a refusal, with all that it is to say."""

from __future__ import annotations

import pytest

from asid.errors import MappingRefused


def refused(errno, operation):
    """Return the refusal of an operation: a sentence of five parts."""
    with pytest.raises(MappingRefused) as caught:
        operation()
    error = caught.value
    assert error.errno == errno
    assert all((error.where, error.what, error.state, error.allowed, error.hint))
    return error
