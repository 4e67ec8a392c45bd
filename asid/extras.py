"""Libraries that one verb alone needs: an extra of the package, and what is said where it is not installed."""

from __future__ import annotations

import importlib
from typing import Any

from asid.errors import HostUnsuitable


def needed(module: str, extra: str, where: str) -> Any:
    """Return the module, imported. where: what needs it. Raise HostUnsuitable when it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise HostUnsuitable(
            f"{module.partition('.')[0]} is not installed here", where=where, state=str(missing),
            allowed=f"importable: it is of the extra `{extra}`", hint=f"pip install 'asid[{extra}]'",
        ) from missing  # fmt: skip
