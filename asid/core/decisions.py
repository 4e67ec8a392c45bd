"""All that a policy decides: what it tells gates and hyperthreads, what is done at exits, and whose promises it makes.

What is explored of a policy is what runs of it if it decides the same for all hyperthreads, and the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from typing import Any, Final

from asid.core import gate, hyperthread
from asid.core.apic import Apic
from asid.core.events import Kick
from asid.core.exits import SVM, VMX
from asid.core.limits import SIBLINGS_ALLOWED
from asid.core.policies.base import Policy
from asid.errors import PolicyRefused

# What a configuration says besides, and a policy only hands on.
HANDED_ON: Final = ("apic", "icr_fix", "nmi_isolated", "mcip")


def decided(policy: type[Policy]) -> list[str]:
    """Return all that a policy decides, as text: of gates, of hyperthreads, of exits, and whose promises it makes.

    Raise PolicyRefused for one that is not the same at each asking, or for all hyperthreads: what is tried of it would
    not be what runs.
    """
    for name in ("like", "unpromised"):
        if getattr(getattr(policy, name), "__func__", None) is not getattr(Policy, name).__func__:
            raise _refused(policy, f"{name}()", "its own", "that of Policy: what is promised follows from what it is")
    if Kick.BARE in policy.kicks and len(policy.kicks) > 1:
        kicks = ", ".join(kick.name.lower() for kick in policy.kicks)
        raise _refused(policy, "kicks", kicks, "bare alone, or none: whose promises it makes follows from that")
    found = [policy.like()]
    for kick in policy.kicks:
        found += [repr(_gate_spec(policy, kick)), *(repr(spec) for spec in _hyperthread_specs(policy, kick))]
        made = policy(kick)
        found += [str(made.needs_full(False, reason.name)) for reason in (*VMX, *SVM)]
    return found


def _gate_spec(policy: type[Policy], kick: Kick) -> gate.Spec:
    spec, again = (policy(kick).gate_spec() for _ in range(2))
    if type(spec) is not gate.Spec or spec != again:
        raise _refused(policy, "gate_spec()", f"{spec!r}, then {again!r}", "a gate.Spec, the same at each asking")
    if spec.together is not (kick is Kick.RENDEZVOUS):
        state = f"together {spec.together} with kick {kick.name.lower()}"
        raise _refused(policy, "gate_spec()", state, "together with kick rendezvous, and with no other")
    return spec


def _hyperthread_specs(policy: type[Policy], kick: Kick) -> Iterator[hyperthread.Spec]:
    """Yield what each hyperthread of each core that there may be is told, whatever a configuration says besides."""
    one, other = policy(kick), policy(kick)
    first = one.hyperthread_spec(0, (1,))
    if type(first) is not hyperthread.Spec:
        raise _refused(policy, "hyperthread_spec()", repr(first)[:80], "a hyperthread.Spec")
    yield first
    for n in SIBLINGS_ALLOWED:
        for ht, *values in product(range(n), Apic, *[(False, True)] * 3):
            siblings = tuple(sibling for sibling in range(n) if sibling != ht)
            rest: dict[str, Any] = dict(zip(HANDED_ON, values, strict=True))
            expected = replace(first, ht=ht, siblings=siblings, kick=kick, **rest)
            for made in (one, other):
                spec = made.hyperthread_spec(ht, siblings, **rest)
                if spec != expected:
                    names = [
                        f.name for f in fields(expected) if getattr(spec, f.name, None) != getattr(expected, f.name)
                    ]
                    raise _refused(
                        policy, "hyperthread_spec()", f"h{ht} of {n}: {_told(spec, names)}",
                        f"{_told(expected, names)}, as for every hyperthread",
                    )  # fmt: skip


def _told(spec: hyperthread.Spec, names: list[str]) -> str:
    return ", ".join(f"{name} {getattr(spec, name, None)!r}" for name in names) or repr(spec)


def _refused(policy: type[Policy], where: str, state: str, allowed: str) -> PolicyRefused:
    return PolicyRefused(
        "what is tried of it would not be what runs", where=f"{policy.__qualname__}.{where}", state=state,
        allowed=allowed, hint="Say what differs by attributes of the class, see asid/core/policies/base.py.",
    )  # fmt: skip
