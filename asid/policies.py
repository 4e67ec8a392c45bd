"""Policies by name: those of asid, those of installed packages (entry points), and `MODULE:CLASS` of one's own.

A policy that is not asid's own is let near the live machine only after `asid policy test` has passed it, as it is now:
the test leaves a stamp with digests of its source and of all that it decides, and a start asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from asid import __version__
from asid.asking import asked
from asid.core.decisions import decided
from asid.core.events import Kick
from asid.core.gate import Rooms
from asid.core.policies.base import Policy
from asid.core.policy import KICKS, POLICIES, kick_of, make_policy
from asid.errors import BadArgument, ConfigError, PolicyRefused, refused_by_os

GROUP: Final = "asid.policies"
# How a leave reaches HOST, in the words of ht.mode.
VIA: Final = {
    Kick.ACK: "grant", Kick.RENDEZVOUS: "grant", Kick.SEND: "send", Kick.STUN: "stun", Kick.BARE: "bare",
}  # fmt: skip
BARE: Final = Kick.BARE.name.lower()
FLAGS: Final = ("guarded", "host_alone", "flush", "irqs_off", "every_exit_full")


def installed() -> dict[str, str]:
    """Return the policies of installed packages: name, and where it is (`module:Class`)."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=GROUP) if point.name not in POLICIES}


def names() -> tuple[str, ...]:
    """Return every policy that can be named without its module."""
    return (*POLICIES, *sorted(installed()))


def require_known(name: str) -> None:
    """Raise ConfigError for a name that is neither a policy's nor of the form MODULE:CLASS. Nothing is imported."""
    if name in POLICIES or all(name.partition(":")) or name in installed():
        return
    near = get_close_matches(name, names(), 1) or ["asi"]
    raise ConfigError(
        f"policy {name!r}", where="policy.name", allowed=f"one of {', '.join(names())}, or MODULE:CLASS",
        hint=f"Did you mean {near[0]}?",
    )  # fmt: skip


def find(name: str) -> type[Policy]:
    """Return the policy of that name: asid's own, an installed one, or `MODULE:CLASS`.

    Raise ConfigError for what is none or cannot be loaded, PolicyRefused for one whose attributes have not the form
    of `Policy`.
    """
    own = POLICIES.get(name)
    if own is not None:
        return own
    require_known(name)
    found = _loaded(name, name if ":" in name else installed()[name])
    for attribute, state, allowed in _misshapen(found):
        raise PolicyRefused(
            f"policy {name!r} has not the form of one", where=f"{name}: {attribute}", state=state, allowed=allowed,
            hint="See asid/core/policies/base.py.",
        )  # fmt: skip
    return found


def _loaded(name: str, where: str) -> type[Policy]:
    module_name, _, attribute = where.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a module of the user's own lies where the user is
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, attribute)
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported, or end there
        raise ConfigError(
            f"policy {name!r} cannot be loaded: {type(error).__name__}: {error}", where=where,
            allowed="a module that can be imported, and a class in it", hint=f"Try python -c 'import {module_name}'.",
        ) from error  # fmt: skip
    wanted = ("name", "about")
    if not (isinstance(found, type) and issubclass(found, Policy)) or any(not hasattr(found, word) for word in wanted):
        raise ConfigError(
            f"policy {name!r} is no policy", where=where, state=repr(found)[:80],
            allowed="a subclass of asid.core.policies.base.Policy with name and about",
            hint="asid/core/policies/kick_except_idle.py is a short one.",
        )  # fmt: skip
    return found


def _misshapen(policy: type[Policy]) -> Iterator[tuple[str, str, str]]:
    """Yield (attribute, what it is, what was allowed) of each class attribute that has not the form it must have."""

    def wrong(attribute: str, allowed: str) -> tuple[str, str, str]:
        return attribute, repr(getattr(policy, attribute))[:80], allowed

    for attribute in ("name", "about"):
        if not isinstance(getattr(policy, attribute), str):
            yield wrong(attribute, "text")
    kicks: object = policy.kicks
    if not isinstance(kicks, tuple) or not kicks or not all(isinstance(kick, Kick) for kick in kicks):
        yield wrong("kicks", "a tuple of one or more asid.core.events.Kick")
    rooms: object = policy.rooms
    if not isinstance(rooms, Rooms):
        yield wrong("rooms", "an asid.core.gate.Rooms")
    for attribute in FLAGS:
        if not isinstance(getattr(policy, attribute), bool):
            yield wrong(attribute, "True or False")
    for attribute in ("idle_kick", "irq_kick"):
        if not isinstance(getattr(policy, attribute), Kick | None):
            yield wrong(attribute, "an asid.core.events.Kick, or None")


def make(name: str, kick: str) -> Policy:
    """Return the policy of that name with that kick variant, or with its own where it has one.

    Raise ConfigError, or PolicyRefused for one that cannot be made."""
    if name in POLICIES or kick not in KICKS:
        return make_policy(name, kick)
    found = find(name)
    with asked(name):
        return found(kick_of(found, KICKS[kick]))


def kick_in_force(name: str, kick: str) -> str:
    """Return the word for the kick that a policy has when this one is chosen; `bare` where nobody is kicked."""
    return make(name, kick).kick.name.lower()


def require_kick(name: str, kick: str, where: str = "policy.kick") -> None:
    """Raise ConfigError for a kick that somebody wants of a policy that has it not. kick: a word, empty for any."""
    kicks = {each.name.lower() for each in find(name).kicks}
    if kick and kick not in kicks:
        raise ConfigError(
            f"policy {name!r} has no kick {kick}", where=where,
            state="nobody is kicked under it" if BARE in kicks else "",
            allowed=f"one of {', '.join(word for word in (*KICKS, BARE) if word in kicks)}", hint="Leave the kick out.",
        )  # fmt: skip


def said_of(name: str, kick: str) -> dict[str, str]:
    """Return what a record says of a policy when this kick is chosen: the one in force, and of a policy that is not
    asid's own, for the audit, whose promises it makes and in which ways its leaves reach HOST."""
    made = make(name, kick)
    said = {"kick": made.kick.name.lower()}
    if name not in POLICIES:
        spec = made.hyperthread_spec(0, (1,))
        kicks = {spec.kick, *(each for each in (spec.idle_kick, spec.irq_kick) if each is not None)}
        said |= {"like": made.like(), "ways": ",".join(sorted({VIA[each] for each in kicks}))}
    return said


# --- tested, as it is now ---------------------------------------------------------------------------------


def require_tested(name: str) -> None:
    """Raise PolicyRefused for a policy that is not asid's own and has not passed `asid policy test` as it is now, and
    BadArgument for one that does not exist."""
    if name in POLICIES:
        return
    try:
        require_known(name)
    except ConfigError as error:
        raise BadArgument(f"no {error.what}", where=error.where, allowed=error.allowed, hint=error.hint) from None
    try:
        stamp = json.loads(_stamp(name).read_text())
    except (OSError, ValueError):
        stamp = {}
    if not stamp or stamp != stamped(name):  # what nobody has tested is not even imported
        raise PolicyRefused(
            f"policy {name!r} has not been tested", where="policy.name",
            state="it was tested as it was before, or by another asid" if stamp else "no test of it is known here",
            allowed="one that has passed", hint=f"asid policy test {name}",
        )  # fmt: skip


def mark_tested(name: str) -> None:
    """Remember that a policy has passed, as it is now. Raise an error of `refused_by_os` when that cannot be
    written down."""
    path, now = _stamp(name), stamped(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(now, indent=1) + "\n")
        os.replace(new, path)
    except OSError as error:
        raise refused_by_os(
            error, f"that policy {name!r} has passed cannot be written down", where=str(path.parent),
            allowed="a directory with room that you may write", hint="Set XDG_STATE_HOME to one, and test it again.",
        ) from error  # fmt: skip


def _stamp(name: str) -> Path:
    base = os.environ.get("XDG_STATE_HOME", "")
    state = Path(base) if base and os.path.isabs(base) else Path.home() / ".local" / "state"
    return state / "asid" / "policies" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def stamped(name: str) -> dict[str, str]:
    """Return what is remembered: every source file of the class that is not asid's own, all that it decides, and
    asid's version. What it decides may come from elsewhere: another module, a file, the environment."""
    import inspect

    policy = find(name)
    with asked(name):
        files = {"decisions": hashlib.sha256("\n".join(decided(policy)).encode()).hexdigest()}
    for base in policy.__mro__:
        module = sys.modules.get(base.__module__)
        if base in POLICIES.values() or base is Policy or module is None or base.__module__ == "builtins":
            continue
        source = inspect.getsourcefile(module)
        if source is not None:
            files[base.__module__] = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return {"asid": __version__, **files}
