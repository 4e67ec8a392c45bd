"""The models that `asid explore` knows by name, and how large each is.

A name says what is in it: `n2v1-nmi-send` is two siblings, both running vCPUs of one VM, one NMI at any step, `send`
kicks (without `-send`: `ack`). The sizes are pinned: `states` and `transitions` are exact, and a change there is a
change of behaviour, to be explained where it is made. 0 stands for a size that nobody has counted yet.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from asid.core.events import Kick
from asid.core.gate import Rooms
from asid.explore.parts import Budget, Model


class Named(NamedTuple):
    """A model by name, with its pinned size. `default`: in the set that `asid explore` runs by itself."""

    name: str
    model: Model
    default: bool
    states: int
    transitions: int
    depth: int


# What comes from outside, by the word for it in a model's name.
BUDGETS: Final[dict[str, Budget]] = {
    "": Budget(),
    "nmi": Budget(nmi=1),
    "nmi2": Budget(nmi=2),
    "nmi-mce": Budget(nmi=1, mce=1),
    "kill": Budget(kill=1, restart=1),
    "death": Budget(kill=1),
    "coordinator": Budget(coordinator=1),
    "loss": Budget(loss=1, retry=1),
    "timers": Budget(timer=1, restart=1),
    "hotplug": Budget(hotplug=2),
    "hold": Budget(hold=1),
    "unplug": Budget(unplug=1, restart=1, hotplug=1),
    "nmi-kill": Budget(nmi=1, kill=1, restart=1),
    "nmi-coordinator": Budget(nmi=1, coordinator=1),
    "coordinator-kill": Budget(coordinator=1, kill=1, restart=1),
    "coordinator-hotplug": Budget(coordinator=1, hotplug=2),
    "coordinator-hold": Budget(coordinator=1, hold=1),
    "coordinator-timers": Budget(coordinator=1, timer=1, restart=1),
    "loss-hotplug": Budget(loss=1, hotplug=2),
    "loss-kill": Budget(loss=1, kill=1, restart=1),
}
# Which VM each sibling runs, by the first word of a model's name.
VMS: Final[dict[str, tuple[int, ...]]] = {
    "n1": (1,),
    "n2v1": (1, 1),
    "n2v2": (1, 2),
    "n3v1": (1, 1, 1),
    "n3v2": (1, 1, 2),
    "n4v1": (1, 1, 1, 1),
}


def build(name: str) -> Model:
    """Return the model that a name describes."""
    first, *rest = name.split("-")
    kick = Kick.SEND if "send" in rest else Kick.ACK
    rooms = Rooms.HYPERTHREAD if "nosmt" in rest else Rooms.VM
    faults = "-".join(word for word in rest if word not in ("send", "nosmt", "halts", "torn"))
    return Model(VMS[first], kick, rooms, BUDGETS[faults], halts="halts" in rest, torn="torn" in rest)


# Name, and the pinned states, transitions and depth. Smallest first within each group.
DEFAULT: Final = {
    "n1": (0, 0, 0),
    "n2v1": (0, 0, 0),
    "n2v2": (0, 0, 0),
    "n2v1-nosmt": (0, 0, 0),
    "n2v1-halts": (0, 0, 0),
    "n2v2-halts": (0, 0, 0),
    "n2v1-nmi": (0, 0, 0),
    "n2v2-nmi": (0, 0, 0),
    "n2v1-nmi-mce": (0, 0, 0),
    "n2v2-nmi-mce": (0, 0, 0),
    "n2v1-nmi-torn": (0, 0, 0),
    "n2v1-kill": (0, 0, 0),
    "n2v2-kill": (0, 0, 0),
    "n2v1-coordinator": (0, 0, 0),
    "n2v2-coordinator": (0, 0, 0),
    "n2v1-loss": (0, 0, 0),
    "n2v2-loss": (0, 0, 0),
    "n2v1-timers": (0, 0, 0),
    "n2v2-timers": (0, 0, 0),
    "n2v1-hotplug": (0, 0, 0),
    "n2v2-hotplug": (0, 0, 0),
    "n2v1-hold": (0, 0, 0),
    "n2v2-hold": (0, 0, 0),
    "n2v1-unplug": (0, 0, 0),
    "n3v1": (0, 0, 0),
    "n3v2": (0, 0, 0),
    "n1-nmi-mce-send": (0, 0, 0),
    "n2v1-send": (0, 0, 0),
    "n2v2-send": (0, 0, 0),
    "n2v1-halts-send": (0, 0, 0),
    "n2v1-nmi-send": (0, 0, 0),
    "n2v2-nmi-send": (0, 0, 0),
    "n2v2-nmi-mce-send": (0, 0, 0),
    "n2v1-torn-send": (0, 0, 0),
    "n2v1-kill-send": (0, 0, 0),
    "n2v2-kill-send": (0, 0, 0),
    "n2v1-coordinator-send": (0, 0, 0),
    "n2v2-coordinator-send": (0, 0, 0),
    "n2v1-loss-send": (0, 0, 0),
    "n2v2-loss-send": (0, 0, 0),
    "n2v1-timers-send": (0, 0, 0),
    "n2v1-hotplug-send": (0, 0, 0),
    "n3v2-send": (0, 0, 0),
}
LARGE: Final = {
    "n2v2-unplug": (0, 0, 0),
    "n2v2-unplug-send": (0, 0, 0),
    "n2v1-nmi-torn-send": (0, 0, 0),
    "n2v2-nmi-mce-torn": (0, 0, 0),
    "n3v2-torn": (0, 0, 0),
    "n2v1-nmi-mce-send": (0, 0, 0),
    "n2v1-nmi2": (0, 0, 0),
    "n2v2-nmi2": (0, 0, 0),
    "n2v1-nmi2-send": (0, 0, 0),
    "n2v1-nmi-kill": (0, 0, 0),
    "n2v2-nmi-kill": (0, 0, 0),
    "n2v1-nmi-kill-send": (0, 0, 0),
    "n2v2-nmi-kill-send": (0, 0, 0),
    "n2v1-nmi-coordinator": (0, 0, 0),
    "n2v2-nmi-coordinator": (0, 0, 0),
    "n2v1-coordinator-kill": (0, 0, 0),
    "n2v2-coordinator-kill": (0, 0, 0),
    "n2v1-coordinator-hotplug": (0, 0, 0),
    "n2v2-coordinator-hotplug": (0, 0, 0),
    "n2v1-coordinator-hold": (0, 0, 0),
    "n2v1-coordinator-timers": (0, 0, 0),
    "n2v2-coordinator-timers": (0, 0, 0),
    "n2v1-loss-hotplug": (0, 0, 0),
    "n2v2-loss-hotplug": (0, 0, 0),
    "n2v1-loss-kill": (0, 0, 0),
    "n2v2-loss-kill": (0, 0, 0),
    "n3v1-halts": (0, 0, 0),
    "n3v1-send": (0, 0, 0),
    "n3v1-coordinator": (0, 0, 0),
    "n3v2-coordinator": (0, 0, 0),
    "n3v1-loss": (0, 0, 0),
    "n3v1-nmi": (0, 0, 0),
    "n3v2-nmi": (0, 0, 0),
    "n3v1-death": (0, 0, 0),
    "n3v2-death": (0, 0, 0),
    "n3v1-kill": (0, 0, 0),
    "n3v2-kill": (0, 0, 0),
    "n4v1": (0, 0, 0),
}


def _named(name: str, default: bool, size: tuple[int, int, int]) -> Named:
    return Named(name, build(name), default, *size)


MODELS: Final[dict[str, Named]] = {
    **{name: _named(name, True, size) for name, size in DEFAULT.items()},
    **{name: _named(name, False, size) for name, size in LARGE.items()},
}
