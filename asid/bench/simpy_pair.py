"""Two siblings as a SimPy model, one event after another: what the simulator is compared with.

SimPy is the common way in Python to write such a model. It is of the same grain and no finer: a guest's time, the exit,
the handler and the entry are a wait each, and a kick stops a guest or a handler in the middle. A leave kicks the
sibling, both wait for each other, and both go on. There is no gate with a state, no word, no record, and nothing is
checked.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy

from asid.guest.base import Source
from asid.sim.costs import Costs


class Pair:
    """Two hyperthreads of one VM under kicks that are answered. exits, leaves: counted as they go."""

    def __init__(self, sources: tuple[Source, Source], costs: Costs) -> None:
        self.exits = self.leaves = 0
        self._costs = costs
        self._env = simpy.Environment()
        self._may_be_kicked = [False, False]
        self._gate = simpy.Resource(self._env)  # who is in HOST, or keeps guests out
        self._threads = [self._env.process(self._live(ht, source)) for ht, source in enumerate(sources)]

    def run(self, duration_ns: int) -> None:
        self._env.run(until=duration_ns)

    def _live(self, ht: int, source: Source) -> Generator[Any, Any, None]:
        env, costs = self._env, self._costs
        while (event := source.next()) is not None:
            yield from self._stretch(ht, event.after_ns, costs.vm_exit)
            self.exits += 1
            yield env.timeout(costs.vm_exit)
            if event.full:
                yield from self._leave(ht, event.service_ns)
            else:
                yield from self._stretch(ht, event.service_ns, 0)
                yield env.timeout(costs.vm_entry)

    def _stretch(self, ht: int, left_ns: float, out_ns: int) -> Generator[Any, Any, None]:
        """Guest time, or a handler's: a kick stops it, and it goes on when the sibling is back. out_ns: to get out."""
        env, costs = self._env, self._costs
        while left_ns:
            begun_ns = env.now
            self._may_be_kicked[ht] = True
            try:
                yield env.timeout(left_ns)
                left_ns = 0
            except simpy.Interrupt:
                left_ns -= env.now - begun_ns
                self._may_be_kicked[ht] = False
                yield env.timeout(out_ns + costs.message)
                with self._gate.request() as turn:
                    yield turn
                yield env.timeout(costs.message + costs.l1d_flush + costs.vm_entry)
        self._may_be_kicked[ht] = False

    def _leave(self, ht: int, work_ns: int) -> Generator[Any, Any, None]:
        env, costs = self._env, self._costs
        self.leaves += 1
        yield env.timeout(costs.message)
        with self._gate.request() as turn:
            yield turn
            yield env.timeout(costs.ipi_send + costs.ipi_delivery)
            if self._may_be_kicked[1 - ht]:
                self._threads[1 - ht].interrupt()
            yield env.timeout(costs.vm_exit + 2 * costs.message + costs.cr3_write)
            yield env.timeout(work_ns)
            yield env.timeout(costs.cr3_write)
        yield env.timeout(2 * costs.message + costs.l1d_flush + costs.vm_entry)
