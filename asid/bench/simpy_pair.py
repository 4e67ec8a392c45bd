"""Two siblings as a SimPy model, one event after another: what the simulator is compared with.

SimPy is the common way in Python to write such a model. It is as lean as it can be and still answer the same question:
a fast exit is two waits (the guest's time, and exit, handler and entry in one), a leave interrupts the sibling if it is
in guest, both wait for each other, and both go on. No gate, no words, no records, no state to be checked.
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
        self._in_guest = [False, False]
        self._gate = simpy.Resource(self._env)  # who is in HOST, or keeps guests out
        self._threads = [self._env.process(self._live(ht, source)) for ht, source in enumerate(sources)]

    def run(self, duration_ns: int) -> None:
        self._env.run(until=duration_ns)

    def _live(self, ht: int, source: Source) -> Generator[Any, Any, None]:
        env, costs = self._env, self._costs
        around_ns = costs.vm_exit + costs.vm_entry
        while (event := source.next()) is not None:
            left_ns: float = event.after_ns
            while left_ns:
                begun_ns = env.now
                self._in_guest[ht] = True
                try:
                    yield env.timeout(left_ns)
                    left_ns = 0
                except simpy.Interrupt:
                    left_ns -= env.now - begun_ns
                    self._in_guest[ht] = False
                    yield env.timeout(costs.vm_exit + costs.message)
                    with self._gate.request() as turn:
                        yield turn
                    yield env.timeout(costs.message + costs.l1d_flush + costs.vm_entry)
            self._in_guest[ht] = False
            self.exits += 1
            if event.full:
                yield from self._leave(ht, event.service_ns)
            else:
                yield env.timeout(event.service_ns + around_ns)

    def _leave(self, ht: int, work_ns: int) -> Generator[Any, Any, None]:
        env, costs = self._env, self._costs
        self.leaves += 1
        yield env.timeout(costs.vm_exit + costs.message)
        with self._gate.request() as turn:
            yield turn
            if self._in_guest[1 - ht]:
                yield env.timeout(costs.ipi_send + costs.ipi_delivery)
                if self._in_guest[1 - ht]:
                    self._threads[1 - ht].interrupt()
            yield env.timeout(costs.vm_exit + 2 * costs.message + costs.cr3_write + work_ns + costs.cr3_write)
        yield env.timeout(2 * costs.message + costs.l1d_flush + costs.vm_entry)
