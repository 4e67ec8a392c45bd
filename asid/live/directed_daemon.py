"""A daemon whose cores each play a script: it opens the first turn, sees the last, looks, and ends the run in order.

It takes no step itself but births, which are nobody else's: a process is born again when it is its turn. A turn that
is not taken in time ends the play; what was expected and what there was is told in `played.json` of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from asid import policies
from asid.config import Loaded
from asid.live.children import Child, Place
from asid.live.daemon import BUSY_TICK_NS, Daemon
from asid.live.page import INSNS, MODE, TURN, base_of
from asid.live.turns import OVER, line_on, mode_on, step_at
from asid.script import BORN, PLAYED, Script, beside

TURN_NS: Final = 10_000_000_000  # a turn takes microseconds; a process that waits for its own message, 5 s at most


class DirectedDaemon(Daemon):
    """A daemon with a script for each of its cores."""

    def __init__(self, loaded: Loaded, name: str, scripts: tuple[Script, ...], *, run_dir: Path | None = None) -> None:
        super().__init__(loaded, name, run_dir=run_dir)
        assert len(scripts) == self.config.machine.cores, "a script a core"
        self.scripts = scripts
        policy = self.config.policy
        if policies.make(policy.name, policy.kick).flush and not all(script.ht_spec["flush"] for script in scripts):
            self.begun_as["flushes"] = False  # the policy would; under one that does not, what is left is its own doing
        self._since: dict[int, tuple[int, int]] = {}  # by core: the turn it is, and since when
        self._ended_ns: dict[int, int] = {}  # by core: when its last step was first over
        self._found: dict[int, dict[str, Any]] = {}  # by core: what is told of it
        smt = self.config.machine.smt
        self._absent = {(core, ht) for core, script in enumerate(scripts) for ht in range(script.siblings, smt)}
        self.unplugged |= self._absent  # there are no such siblings in the scripts: they go as soon as they are up

    def start(self) -> None:
        super().start()
        if self.state == "ready":  # else a signal was faster
            for core in self.pages:
                self._turn(core, 1)
            self.hasten()

    def _late(self) -> list[str]:
        """Return who has not said that it is up, or has not gone. Gates hear of them when the script says so."""
        children = self.children.by_place
        return [child.birth.name for place, child in children.items() if not child.up or place in self._absent]

    def _turn(self, core: int, number: int) -> None:
        self.words(core)[TURN] = number
        for ht in range(self.scripts[core].siblings):
            self.ring_bell((core, ht))

    # --- the play -----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.state == "ready":
            for core in self.pages:
                if core not in self._found:
                    self._look_at(core)
            if len(self._found) == len(self.pages) and self.now_ns() > self._met_ns:
                self.begin_stop("the script has been played")
        super()._tick()
        if not self.over and len(self._found) < len(self.pages):
            self.hasten()

    def _look_at(self, core: int) -> None:
        """See whether the turn goes on, or whether the last one is over."""
        now, script, turn = self.now_ns(), self.scripts[core], self.words(core)[TURN]
        if turn == 0:
            return
        if turn <= len(script.steps):
            before, since = self._since.get(core, (0, now))
            if before != turn:
                self._since[core] = (turn, now)
            elif now - since > TURN_NS:
                step = script.steps[turn - 1]
                who = f"c{core}h{step.who}" if step.who >= 0 else f"the coordinator of c{core}"
                alive = "lives" if self.child((core, step.who)) is not None else "is dead"
                self._end_play(core, {"expected": step.text, "found": f"nothing for 10 s; {who} {alive}"})
            return
        ended = self._ended_ns.setdefault(core, now)
        if now - ended < script.keeps_ns:
            if script.cycle >= 0:
                self._turn(core, script.cycle + 1)
            return
        self._end_play(core, None)

    def on_astray(self, child: Child, message: dict[str, Any]) -> None:
        core = child.birth.core
        if core not in self._found and self.state == "ready":
            found = f"{child.birth.name} has {message['found']}"
            self._end_play(core, {"expected": message["expected"], "found": found})

    def on_death(self, child: Child, status: int) -> None:
        """Deaths of a script are kills and orderly ends. Any other is of a fault, and its turn will not be taken."""
        step = step_at(self.scripts[child.birth.core], self.words(child.birth.core))
        if status > 0 and step is not None and self.state == "ready" and child.birth.core not in self._found:
            self._end_play(
                child.birth.core, {"expected": step.text, "found": f"{child.birth.name} dead with status {status}"}
            )
        super().on_death(child, status)

    def _end_play(self, core: int, astray: dict[str, str] | None) -> None:
        """Look at the page while everybody still stands where the last step has left them."""
        script, words = self.scripts[core], self.words(core)
        turn = min(words[TURN], len(script.steps) + 1)
        step = step_at(script, words)
        hts = []
        for ht in range(script.siblings):
            base, line = base_of(ht), line_on(words, ht)
            hts.append(
                {
                    "name": f"c{core}h{ht}", "mode": mode_on(words, ht), "vm": words[base + MODE] >> 8,
                    "pending": line.pending, "flag": line.flag, "depth": line.depth, "insns": words[base + INSNS],
                }
            )  # fmt: skip
        together = beside([(h["mode"], h["vm"], h["pending"]) for h in hts])
        taken = max((each.at for each in script.steps[: turn - 1]), default=0)
        self._found[core] = {"core": core, "steps": taken, "of": script.length, "hts": hts, "beside": together}
        said = "; ".join(together) or "nobody is beside whom it must not be beside"
        if astray is not None:
            self._found[core]["astray"] = {"step": step.at if step else 0, "text": step.text if step else "", **astray}
            said = f"cannot go on: expected {astray['expected']}, found {astray['found']}"
        self.note("mark", {"text": f"step {taken} of {script.length}: {said}"}, core)
        if astray is not None:
            self._turn(core, OVER)

    def begin_stop(self, reason: str, *, force: bool = False, ticket: int = 0) -> None:
        """Everybody goes on by itself from here, and then out through the gate."""
        for core in self.pages:
            self._turn(core, OVER)
        super().begin_stop(reason, force=force, ticket=ticket)

    def end(self) -> None:
        super().end()
        cores = [self._found[core] for core in sorted(self._found)]
        self.run_dir.write_json(PLAYED, {"schema": "played/1", "cores": cores})

    # --- births -------------------------------------------------------------------------------------------

    def _again(self, place: Place) -> None:
        """A birth is a step: it waits for its turn, and until everybody is dead by then who is dead in the script."""
        core, ht = place
        step = step_at(self.scripts[core], self.words(core))
        if self.state == "ready" and core not in self._found:
            dead = [(core, o) for o, line in enumerate(step.after) if not line.mode] if step is not None else []
            its_turn = step is not None and step.who == ht and step.event == BORN
            if not its_turn or any(self.child(other) is not None for other in dead):
                self.later(BUSY_TICK_NS, lambda: self._again(place))
                return
        super()._again(place)
