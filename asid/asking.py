"""A policy is asked, and whatever its code does then is said of the policy: it may be the user's own."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from asid.errors import AsidError, PolicyRefused


@contextlib.contextmanager
def asked(name: str) -> Iterator[None]:
    """Ask a policy something within this block: what its code raises there, an ending too, is a PolicyRefused."""
    try:
        yield
    except AsidError:
        raise
    except (Exception, SystemExit) as fault:
        ours = str(Path(__file__).parent)
        frames = [frame for frame in traceback.extract_tb(fault.__traceback__) if not frame.filename.startswith(ours)]
        place = f", {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
        raise PolicyRefused(
            f"policy {name!r} does not answer", where=name, state=f"{type(fault).__name__}: {fault}"[:200] + place,
            allowed="one that answers whatever it is asked, and raises nothing", hint="See asid/core/policies/base.py.",
        ) from fault  # fmt: skip
