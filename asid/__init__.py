"""asid: KVM address space isolation, emulated live: processes as hyperthreads, a gate per core, a journal to audit.

The library's front door. The four names below are loaded when first used, so that `import asid` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asid.client import Client, Daemon, Run, connect

__version__ = "0.1.0"

__all__ = ["Client", "Daemon", "Run", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from asid import client

        return getattr(client, name)
    raise AttributeError(f"module 'asid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
