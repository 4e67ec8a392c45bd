"""From a configuration to its host and its VMs' isolated spaces.

A vCPU is on the CPU of its hyperthread: CPU numbers count hyperthreads core by core. All CPUs are possible ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from asid.config import MAPPINGS, Loaded, vm_name
from asid.config_rules import printable
from asid.core.exits import Isa
from asid.errors import AsidError, ConfigError
from asid.guest import FILE_KEYS, make_source
from asid.guest.kvm import host_isa
from asid.guest.mix import read_mix
from asid.mm.entry import ENTRIES, PAGE, Level
from asid.mm.host import Host, VmShape
from asid.mm.isolated import Entry, Isolated
from asid.mm.population import entries_of
from asid.space_files import mapping_text, read_mapping, read_symbols

LEVELS = {"x86-64-4level": 4, "x86-64-5level": 5}


def host_of(loaded: Loaded) -> Host:
    """Return the host that a configuration describes. Raise InputError when its symbol file is none."""
    config = loaded.config
    smt = config.machine.smt
    shapes = [
        VmShape(vm_name(config, vm), tuple(core * smt + ht for core, ht in config.places_of(vm)))
        for vm in range(1, len(config.vm) + 1)
    ]
    symbols = read_symbols(loaded.base_dir / config.space.kallsyms) if config.space.kallsyms else None
    return Host(shapes, config.machine.cores * smt, levels=LEVELS[config.space.layout], symbols=symbols)


def isa_of(loaded: Loaded, vm: int) -> Isa:
    """Return the kind of processor that a VM's exits are of: that of the first one, VMX where there is none."""
    guest = loaded.config.vm[vm - 1].guest
    if guest.source == "kvm":
        return host_isa()
    if guest.source not in FILE_KEYS:
        return "vmx"
    if guest.source == "mix":
        return read_mix(loaded.base_dir / guest.table).entries[0].reason.isa
    first = make_source(guest, vm=vm, vcpu=0, seed=loaded.config.seed, base_dir=loaded.base_dir).next()
    return first.isa if first else "vmx"


def vm_numbers(loaded: Loaded, name: str | None) -> tuple[int, ...]:
    """Return the number of the VM of that name or of the form vm1; of all without one. Raise ConfigError."""
    names = [vm_name(loaded.config, vm) for vm in range(1, len(loaded.config.vm) + 1)]
    numbered = [f"vm{number}" for number in range(1, len(names) + 1)]
    if not names:
        raise ConfigError(
            "it has no VM", where=str(loaded.path), allowed="one [[vm]] or more", hint="An isolated space is a VM's."
        )
    if name is None:
        return tuple(range(1, len(names) + 1))
    for known in (names, numbered):
        if name in known:
            return (known.index(name) + 1,)
    raise ConfigError(f"there is no VM {name!r}", where=str(loaded.path), allowed=", ".join(names))


def mapping_of(loaded: Loaded, mapping: str) -> dict[int, tuple[Entry, ...]]:
    """Return what is mapped for each VM. mapping: a name, or a file. Raise ConfigError, InputError."""
    vms = vm_numbers(loaded, None)
    if mapping == "allowed":  # the same for every kind of processor, so no source is asked for its kind
        return dict.fromkeys(vms, entries_of(mapping, "vmx"))
    if mapping in MAPPINGS:
        return {vm: entries_of(mapping, isa_of(loaded, vm)) for vm in vms}
    path = Path(mapping)
    if not path.exists():
        raise ConfigError(
            f"there is no mapping {mapping!r}",
            where="--mapping",
            allowed=f"{', '.join(MAPPINGS)} or a file",
            hint="asid space learn CONFIG -o FILE writes one.",
        )
    known = read_mapping(path)
    lacking = [vm_name(loaded.config, vm) for vm in vms if vm_name(loaded.config, vm) not in known]
    if lacking:
        raise ConfigError(
            f"it maps nothing for {', '.join(lacking)}",
            where=mapping,
            state=f"it is for {', '.join(known)}",
            allowed="a mapping with each VM of the configuration",
            hint="asid space learn CONFIG -o FILE writes one.",
        )
    return {vm: known[vm_name(loaded.config, vm)] for vm in vms}


def mapping_at_start(loaded: Loaded) -> dict[int, tuple[Entry, ...]]:
    """Return what is mapped for each VM when its machine starts, by the key `space.mapping`; {} of one without VMs.

    Raise ConfigError with the key and its line for a file that is no mapping, or not one of these VMs.
    """
    given = loaded.config.space.mapping
    if not loaded.config.vm:
        return {}
    try:
        return mapping_of(loaded, given if given in MAPPINGS else str(loaded.base_dir / given))
    except AsidError as refused:
        raise _placed(refused, loaded) from None


def file_text(loaded: Loaded, mapping: Iterable[tuple[Entry, ...]]) -> str:
    """Return the mapping of every VM, in the order of their numbers, as the text of a file; "" of no VM."""
    named = {vm_name(loaded.config, vm): entries for vm, entries in enumerate(mapping, start=1)}
    return mapping_text(named, f"What was mapped at the start: {loaded.config.space.mapping}") if named else ""


def check_mapping(loaded: Loaded) -> None:
    """Raise ConfigError when the machine of a configuration cannot start with the mapping that it names.

    The named ones fit every machine; a file is read, and its objects are mapped as they will be.
    """
    if loaded.config.space.mapping in MAPPINGS:
        return
    entries = mapping_at_start(loaded)
    host = host_of(loaded)
    for vm, mapped in entries.items():
        try:
            isolated_of(host, vm, mapped)
        except AsidError as refused:
            raise _placed(refused, loaded) from None


def _placed(refused: AsidError, loaded: Loaded) -> ConfigError:
    """Return the refusal of a mapping as that of the key which names it."""
    said = f"{refused.where}: {refused.what}" if refused.where else refused.what
    return ConfigError(
        f'space.mapping = "{printable(loaded.config.space.mapping)}"',
        where=loaded.origin["space.mapping"],
        state=printable(f"{said}; {refused.state}" if refused.state else said),
        allowed=refused.allowed,
        hint=printable(refused.hint or "asid space learn CONFIG -o FILE writes one."),
    )


def isolated_of(host: Host, vm: int, entries: tuple[Entry, ...]) -> Isolated:
    """Return a VM's isolated space with these objects in it. Raise MappingRefused as Isolated.map does."""
    isolated = Isolated(host, vm)
    isolated.apply(entries)
    return isolated


def own_pages(host: Host, vm: int, name: str, step: str) -> Entry:
    """Return how an object is mapped with the least beside it: in pages of its own, in entries of 2 MiB where it fills
    them."""
    place = host.all_of(name, vm)[0]
    whole = (place.start | place.size) % (ENTRIES * PAGE) == 0
    return Entry(name, Level.PMD if whole else Level.PTE, not whole, step)
