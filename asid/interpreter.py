"""How a module of asid is run as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = str(Path(__file__).parents[1])


def words_of(module: str) -> list[str]:
    """Return the command that runs a module. Whatever lies in the directory where somebody calls asid is no part of it:
    a `select.py` there would be taken for Python's own. Only where asid itself is found there alone it must be."""
    found = sys.path if sys.flags.safe_path else sys.path[1:]  # the first is that directory, or that of a script
    return [sys.executable, *(["-P"] if ROOT in found else []), "-m", module]
