"""Policy `asi`: the subject of the RFC. Exits in the isolated address space, kicks on leaves only."""

from __future__ import annotations

from asid.core.policies.base import Policy


class Asi(Policy):
    """Handled in ISOLATED as long as the mapping suffices; flushed only if the core was tainted since the last."""

    name = "asi"
    about = "exits in the isolated address space; kicks on leaves only"
