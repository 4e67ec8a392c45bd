"""What a configuration must satisfy beyond the type of each key. A rule refuses with key, value and a way out.

Not to be confused with `asid.config_file`, which finds wrong types and unknown keys and adds the line of the file.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from asid.config import (
    HALT_POLL_MAX_NS,
    KICK_DEADLINE_MAX_NS,
    KICK_DEADLINE_MIN_NS,
    MAPPINGS,
    MCE_TIMEOUT_MAX_NS,
    MCE_TIMEOUT_MIN_NS,
    SMT_ALLOWED,
    Config,
    Vm,
)
from asid.config_costs import parse_cost, with_file, written
from asid.core.exits import canonical
from asid.core.policy import POLICIES
from asid.errors import AsidError, ConfigError
from asid.targets import Place, Topology, format_place, resolve
from asid.units import format_ns, parse_duration_ns, parse_rate_hz

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_VM_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,30}")
_LOOKS_LIKE_HARDWARE = re.compile(r"c[0-9]+(h[0-9]+)?")
_NUMBERED_VM = re.compile(r"vm([0-9]+)")


class RuleBroken(AsidError):
    """A rule's refusal before the file and line are known. key: dotted, as in origins."""

    def __init__(self, key: str, value: object, *, state: str = "", allowed: str = "", hint: str = "") -> None:
        super().__init__(
            f"{printable(key)} = {printable(_shown(value))}",
            state=printable(state),
            allowed=allowed,
            hint=printable(hint),
        )
        self.key = key


def _shown(value: object) -> str:
    """A value as TOML writes it, cut where a reader has seen enough."""
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """The text with control and format characters written out: a name must not change how its error is read."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def kind_of(mode: int) -> str:
    """What a file is that is no regular file. mode: of os.stat."""
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a fifo"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


def check(config: Config, base_dir: Path) -> None:
    """Raise RuleBroken at the first rule that does not hold. base_dir: what the named files are relative to."""
    for rule in (_names, _machine, _policy, _real_guests, _vms, _pace):
        rule(config)
    _files(config, base_dir)
    _injections(config)
    _faults(config)
    _costs(config, base_dir)


def _names(config: Config) -> None:
    if not _NAME.fullmatch(config.name):
        raise RuleBroken(
            "name",
            config.name,
            allowed="1 to 40 of a-z, 0-9, dot, dash and underscore, the first a letter or digit",
            hint="It names a directory and a socket path, which has 107 bytes at most.",
        )


def _machine(config: Config) -> None:
    if config.machine.smt not in SMT_ALLOWED:
        near = min(SMT_ALLOWED, key=lambda smt: (abs(smt - config.machine.smt), -smt))
        raise RuleBroken(
            "machine.smt", config.machine.smt, allowed="1, 2, 4 or 8 (SMT threads of one core)", hint=f"Try {near}."
        )


def _policy(config: Config) -> None:
    name = config.policy.name
    if name not in POLICIES:
        from asid.policies import require_known

        _checked("policy.name", name, require_known)  # one of the user's own is not imported before it was tested
    if not config.apic.icr_fix and config.apic.mode != "xapic":
        raise RuleBroken(
            "apic.icr_fix", False, state=f'apic.mode is "{config.apic.mode}"', allowed="true; only xapic has an ICR2",
            hint='Set apic.mode = "xapic".',
        )  # fmt: skip
    _duration("policy.kick_deadline", config.policy.kick_deadline, KICK_DEADLINE_MIN_NS, KICK_DEADLINE_MAX_NS)
    _duration("mce.timeout", config.mce.timeout, MCE_TIMEOUT_MIN_NS, MCE_TIMEOUT_MAX_NS)
    _duration("policy.turn", config.policy.turn, 100_000, KICK_DEADLINE_MAX_NS)
    _duration("journal.flush", config.journal.flush, 1_000_000, 10_000_000_000)
    if config.journal.kvm_events == "on" and not config.real_vms:
        raise RuleBroken(
            "journal.kvm_events", "on", state="no VM is a real guest", allowed="auto or off",
            hint='Leave it out, or give a VM the source "kvm".',
        )  # fmt: skip


def _real_guests(config: Config) -> None:
    if all(vm.guest.source != "kvm" and not vm.guest.program for vm in config.vm):
        return
    from asid.guest.kvm_programs import HYPERTHREADS_MAX, PROGRAMS, RATE_HZ_MAX, RATE_HZ_MIN

    scale = config.pace.scale if config.pace.mode == "scaled" else 1.0
    for index, vm in enumerate(config.vm):
        key, program = f"vm.{index}.guest.program", vm.guest.program
        if vm.guest.source != "kvm":
            if program:
                raise RuleBroken(
                    key, program, state=f'the source "{vm.guest.source}" runs none', hint='Set source = "kvm".'
                )
            continue
        if program not in ("", *PROGRAMS):
            raise RuleBroken(key, program, allowed=", ".join(PROGRAMS), hint=f"Try {next(iter(PROGRAMS))}.")
        if vm.guest.rate and not PROGRAMS[program or "mix"].paced:
            raise RuleBroken(
                f"vm.{index}.guest.rate", vm.guest.rate, state=f'the program "{program}" exits when it wants to',
                hint="Leave it out, or use the program mix or halt.",
            )  # fmt: skip
        key = f"vm.{index}.guest.rate"
        if vm.guest.rate and not RATE_HZ_MIN <= _checked(key, vm.guest.rate, parse_rate_hz) * scale <= RATE_HZ_MAX:
            raise RuleBroken(
                key, vm.guest.rate, state=f"{scale:g} times as fast" if scale != 1.0 else "",
                allowed=f"{RATE_HZ_MIN:g}/s to {RATE_HZ_MAX:g}/s of guest time", hint="Try 1000/s.",
            )  # fmt: skip
        if config.machine.cores * config.machine.smt > HYPERTHREADS_MAX:
            raise RuleBroken(
                f"vm.{index}.guest.source", "kvm", state=f"{config.machine.cores * config.machine.smt} hyperthreads",
                allowed=f"at most {HYPERTHREADS_MAX} in a machine with real guests", hint="Use fewer cores.",
            )  # fmt: skip


def _vms(config: Config) -> None:
    taken: dict[Place, str] = {}
    names: set[str] = set()
    for index, vm in enumerate(config.vm):
        _vm_name(index, vm, names)
        for item, text in enumerate(vm.on):
            key = f"vm.{index}.on.{item}"
            for place in _places(key, text, config.bare_topology):
                if place in taken:
                    raise RuleBroken(
                        key,
                        text,
                        state=f"{format_place(*place)} already runs a vCPU of {taken[place]}",
                        allowed="a hyperthread without a vCPU (one vCPU a hyperthread)",
                        hint=_free_hint(config, taken),
                    )
                taken[place] = vm.name or f"vm{index + 1}"
        if not vm.on:
            raise RuleBroken(f"vm.{index}.on", "", allowed="one hyperthread or more", hint=_free_hint(config, taken))
        if vm.guest.rate:
            key, state = f"vm.{index}.guest.rate", f'the source "{vm.guest.source}" has none'
            _checked(key, vm.guest.rate, parse_rate_hz)
            if vm.guest.source not in ("mix", "kvm"):
                raise RuleBroken(
                    key, vm.guest.rate, state=state, hint="Leave it out; pace.scale speeds a recording up."
                )
        key = f"vm.{index}.guest.halt_poll"
        _duration(key, vm.guest.halt_poll, 0, HALT_POLL_MAX_NS)
        if vm.guest.halt_poll_ns and vm.guest.source == "idle":
            raise RuleBroken(key, vm.guest.halt_poll, state='the source "idle" never halts', hint="Leave it out.")


def _vm_name(index: int, vm: Vm, names: set[str]) -> None:
    key = f"vm.{index}.name"
    name = vm.name or f"vm{index + 1}"
    numbered = _NUMBERED_VM.fullmatch(name)
    if not _VM_NAME.fullmatch(name) or _LOOKS_LIKE_HARDWARE.fullmatch(name):
        raise RuleBroken(
            key,
            name,
            allowed="up to 31 of a-z, 0-9, dot, dash and underscore, not like c0 or c0h1",
            hint="Try tenant-a.",
        )
    if numbered and int(numbered[1]) != index + 1:
        raise RuleBroken(key, name, state=f"this is VM {index + 1} of the file", hint=f"Try vm{index + 1}, or a word.")
    if name in names:
        raise RuleBroken(key, name, state="another VM has this name", hint=f"Try vm{index + 1}.")
    names.add(name)


def _pace(config: Config) -> None:
    if config.pace.scale != 1.0 and config.pace.mode != "scaled":
        raise RuleBroken(
            "pace.scale",
            config.pace.scale,
            state=f'pace.mode is "{config.pace.mode}"',
            hint='Set pace.mode = "scaled".',
        )


def _files(config: Config, base_dir: Path) -> None:
    if config.space.kallsyms and not (base_dir / config.space.kallsyms).is_file():
        raise _no_file("space.kallsyms", config.space.kallsyms, base_dir)
    if config.space.mapping not in MAPPINGS and not (base_dir / config.space.mapping).is_file():
        raise _no_mapping(config.space.mapping, base_dir)
    needs = {"mix": ("table", "a table of exits"), "trace": ("file", "a recording")}
    for index, vm in enumerate(config.vm):
        needed, noun = needs.get(vm.guest.source, ("", ""))
        for field in ("table", "file"):
            key, value = f"vm.{index}.guest.{field}", str(getattr(vm.guest, field))
            if value and field != needed:
                raise RuleBroken(key, value, state=f'the source "{vm.guest.source}" reads none', hint="Leave it out.")
            if field == needed and not value:
                raise RuleBroken(
                    key, value, allowed=f'{noun}, because source = "{vm.guest.source}"', hint=f"Name {noun}."
                )
            if value and not (base_dir / value).is_file():
                raise _no_file(key, value, base_dir)


def _injections(config: Config) -> None:
    for index, inject in enumerate(config.inject):
        at = f"inject.{index}"
        _places(f"{at}.target", inject.target, config.topology)
        _duration(f"{at}.at", inject.at, 0, None)
        _duration(f"{at}.duration", inject.duration, 1, None)
        if inject.rate:
            _checked(f"{at}.rate", inject.rate, parse_rate_hz)
        if inject.reason and inject.what != "exit":
            raise RuleBroken(
                f"{at}.reason", inject.reason, state=f'what = "{inject.what}"', hint="Only an exit has one."
            )
        if inject.reason:
            _checked(f"{at}.reason", inject.reason, canonical)


def _faults(config: Config) -> None:
    for index, slow in enumerate(config.faults.slow):
        _places(f"faults.slow.{index}.target", slow.target, config.topology)
        _duration(f"faults.slow.{index}.delay", slow.delay, 0, 10_000_000_000)
        _duration(f"faults.slow.{index}.signal", slow.signal, 0, 10_000_000_000)


def _costs(config: Config, base_dir: Path) -> None:
    for name, text in written(config.costs).items():
        _checked(f"costs.{name}", text, parse_cost)
    file = config.costs.file
    if file and not (base_dir / file).is_file():
        raise _no_file("costs.file", file, base_dir)
    try:
        with_file(config.costs, base_dir)
    except ConfigError as refused:
        state = f"{refused.where}: {refused.what}" if refused.where else refused.what
        state += f", {refused.state}" if refused.state else ""
        raise RuleBroken("costs.file", file, state=state, allowed=refused.allowed, hint=refused.hint) from None


def _duration(key: str, text: str, low_ns: int, high_ns: int | None) -> None:
    value_ns = _checked(key, text, parse_duration_ns)
    if value_ns < low_ns or (high_ns is not None and value_ns > high_ns):
        allowed = f"{format_ns(low_ns)} or more" if high_ns is None else f"{format_ns(low_ns)} to {format_ns(high_ns)}"
        near = low_ns if value_ns < low_ns else high_ns or low_ns
        raise RuleBroken(key, text, allowed=allowed, hint=f"Try {format_ns(near)}.")


def _places(key: str, text: str, topology: Topology) -> tuple[Place, ...]:
    return _checked(key, text, lambda given: resolve(given, topology))


def _checked(key: str, value: str, read: Callable[[str], T]) -> T:
    """What `read` returns; its refusal becomes a RuleBroken of this key."""
    try:
        return read(value)
    except AsidError as refused:
        # Only a refusal of the grammar repeats the value; others say what there is not.
        state = refused.state or ("" if isinstance(refused, ConfigError) else refused.what.partition(": ")[2])
        raise RuleBroken(key, value, state=state, allowed=refused.allowed, hint=refused.hint) from None


def _free_hint(config: Config, taken: dict[Place, str]) -> str:
    free = [place for place in config.bare_topology.all_places() if place not in taken]
    return f"Try {format_place(*free[0])}." if free else "Every one is taken; raise machine.cores or machine.smt."


def _no_file(key: str, value: str, base_dir: Path) -> RuleBroken:
    path = base_dir / value
    try:
        state = f"{path} is {kind_of(path.stat().st_mode)}"
    except (OSError, ValueError):
        return RuleBroken(key, value, state=f"no such file: {path}", hint=_near_file(path, value))
    return RuleBroken(key, value, state=state, allowed="a regular file", hint="Name a file.")


def _no_mapping(value: str, base_dir: Path) -> RuleBroken:
    file = _no_file("space.mapping", value, base_dir)
    near = get_close_matches(Path(value).name, MAPPINGS, 1)
    hint = f"Did you mean {near[0]}?" if near else "asid space learn CONFIG -o FILE writes one."
    return RuleBroken(
        "space.mapping", value, state=file.state, allowed=f"{', '.join(MAPPINGS)} or a regular file", hint=hint
    )


def _near_file(path: Path, value: str) -> str:
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    except OSError:
        names = []
    near = get_close_matches(path.name, names, 1)
    return f"Did you mean {Path(value).with_name(near[0])}?" if near else "Paths are relative to the configuration."
