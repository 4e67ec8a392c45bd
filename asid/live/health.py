"""How the machine stands: the daemon's regular look at its coordinators, and what `status.get` says of it.

A coordinator that has not answered a look for SILENT_NS is silent: the machine is degraded until it answers again. It
is not killed: a gate whose coordinator stands still is closed to everyone who is not in already, which breaks nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asid.core.rebirth import too_often
from asid.live.children import Child, name_of
from asid.live.page import FAILED
from asid.units import format_ns

if TYPE_CHECKING:
    from asid.live.daemon import Daemon

LOOK_NS: Final = 100_000_000
SILENT_NS: Final = 2_000_000_000  # on the procedures' clock, which stands still while the daemon does

log = logging.getLogger("asid.daemon")


@dataclass
class _Look:
    """A question under way. told: its silence has been noted in the journal."""

    child: Child
    number: int
    since_ns: int
    told: bool = False


class Health:
    """Looks at the coordinators, ten times a second; each is asked again when it has answered."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._looks: dict[int, _Look] = {}  # by core
        self.failed: set[int] = set()  # cores on which a machine check was fatal

    def look(self) -> None:
        daemon = self._daemon
        now = daemon.operations.awake_ns
        for child in daemon.children.coordinators():
            core, before = child.birth.core, self._looks.get(child.birth.core)
            if before is not None and before.child is child and daemon.unanswered(before.number):
                if now - before.since_ns > SILENT_NS and not before.told:
                    before.told = True
                    log.warning("coordinator %s (pid %d) does not answer", child.birth.name, child.pid)
                    text = f"the coordinator of c{core} (pid {child.pid}) does not answer; its gate serves nobody"
                    daemon.note("warn", {"text": text}, core)
            elif child.up:
                self._looks[core] = _Look(child, daemon.ask(child, {"op": "gate"}), now)
        for core in daemon.pages:
            if daemon.words(core)[FAILED]:
                self.fail(core)  # its record may have died with the hyperthread that saw it
        for (core, ht), (n, full) in daemon.exit_counts.items():
            daemon.telemetry.counters(core, ht, {"exits": n, "full": full})
        daemon.telemetry.clock()
        daemon.node.set_timer("gates", LOOK_NS, self.look)

    def fail(self, core: int) -> None:
        """A machine check was fatal: no guest runs on this core any more. The hyperthreads keep that by themselves
        (FAILED, on the page); the gate is held for good, so that nobody is asked to try."""
        if core in self.failed:
            return
        self.failed.add(core)
        daemon = self._daemon
        text, by = f"c{core} has failed: a machine check was fatal, and no guest runs there any more", "a fatal #MC"
        daemon.problems.append(text)
        daemon.note("warn", {"text": text}, core)
        log.warning("%s", text)
        daemon.holders.setdefault(core, {})["mce"] = by
        if (coordinator := daemon.coordinator(core)) is not None:
            daemon.tell(coordinator, {"op": "hold", "what": "mce", "by": by})

    def silent(self) -> dict[int, _Look]:
        """Coordinators that have not answered for too long, by core."""
        return {
            core: look
            for core, look in self._looks.items()
            if look.told and self._daemon.coordinator(core) is look.child and self._daemon.unanswered(look.number)
        }

    def condition(self) -> str:
        daemon = self._daemon
        if daemon.state != "ready":
            return daemon.state
        if daemon.journal.broken:
            return "failed"
        machine = daemon.config.machine
        wanted = {(core, ht) for core in range(machine.cores) for ht in range(-1, machine.smt)} - daemon.unplugged
        alive = {place for place, child in daemon.children.by_place.items() if child.up}
        return "ready" if wanted <= alive and not self.silent() and not self.failed else "degraded"

    def warnings(self) -> list[str]:
        daemon = self._daemon
        found = list(daemon.problems)
        given_up = (place for place in daemon.rebirths if place not in daemon.unplugged and daemon.given_up(place))
        found += [too_often(name_of(place)) for place in sorted(given_up)]
        now = daemon.operations.awake_ns
        for core, look in sorted(self.silent().items()):
            for_ns = (now - look.since_ns) // LOOK_NS * LOOK_NS
            found.append(
                f"the coordinator of c{core} (pid {look.child.pid}) has not answered for {format_ns(for_ns)}: "
                "its gate serves nobody"
            )
        if daemon.journal.broken:
            found.append(f"the journal is broken: {daemon.journal.broken}; {daemon.journal.lost} records lost")
        return found
