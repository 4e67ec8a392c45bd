"""A hyperthread of the live engine inside the test's own process: real page, ring, doorbells and sockets, no gate.

The test plays the coordinator and the siblings, and decides between which two actions anything happens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import zmq

from asid import wire
from asid.config import load_config
from asid.core import hyperthread as core
from asid.core.events import Bid, Order, Report
from asid.live import sockets
from asid.live.birth import Birth, Fd
from asid.live.hyperthread import Hyperthread
from asid.live.page import (
    INSNS,
    KICK_INSNS,
    KICK_NUMBER,
    NMI,
    PENDING,
    REQUEST,
    CorePage,
    base_of,
    interrupt_parts,
    interrupt_word,
    make_page,
)
from asid.live.ring import Ring, make_ring
from asid.mm.population import entries_of

CONFIG: dict[str, Any] = {
    "name": "one",
    "machine": {"cores": 1, "smt": 4},
    "vm": [{"on": ["c0h0"], "guest": {"source": "idle"}}],
}


class Line:
    """The way to the coordinator: keeps what was sent, or takes nothing while it is `down`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.down = False

    def send(self, frame: bytes, flags: int) -> None:
        assert flags == zmq.NOBLOCK, "a hyperthread never waits for its coordinator"
        if self.down:
            raise zmq.Again
        self.sent.append(frame)


class OneHyperthread:
    """c0h0 of a core of four. `settle` performs what is to be done; `between` is called before each action."""

    def __init__(
        self,
        root: Path,
        *,
        policy: str = "asi",
        kick: str = "ack",
        apic: str = "x2apic",
        nmi: str = "full",
        inc: int = 1,
        request: int = 0,
        mapping: str = "allowed",
        vms: int = 1,
    ) -> None:
        self.page_fd, self.ring_fd = make_page(0, 4), make_ring("c0h0")
        before = CorePage(self.page_fd, 4)
        before.words[base_of(0) + REQUEST] = request
        before.close()
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)]
        self._context = sockets.new_context()
        real, made = sockets.new_context, []
        sockets.new_context = lambda: made.append(real()) or made[-1]  # type: ignore[assignment,func-returns-value]
        self._link = sockets.daemon_link_router(self._context, root / "l.sock")
        shapes = [{"on": [f"c0h{ht}"], "guest": {"source": "idle"}} for ht in range(vms)]
        config = load_config({**CONFIG, "vm": shapes, "apic": {"mode": apic}, "policy": {"nmi": nmi}})
        self.birth = Birth(
            core=0, ht=0, siblings=4, inc=inc, coord=1, page=Fd(self.page_fd), ring=Fd(self.ring_fd),
            doorbells=tuple(map(Fd, self.bells)), gate_path=str(root / "g.sock"), link_path=str(root / "l.sock"),
            config=config, base_dir=str(root), policy=policy, kick=kick, vcpu=(1, 0),
            mapping=(entries_of(mapping, "vmx"),) * vms,
        )  # fmt: skip
        try:
            self.ht = Hyperthread(self.birth)
        finally:
            sockets.new_context = real
        [self._inner] = made
        self.line = Line()
        self.ht.gate = self.line  # type: ignore[assignment]
        self.words = self.ht.words
        self.own = base_of(0)
        self.round = 1
        self._reader = Ring(self.ring_fd)
        self.between: Callable[[core.Action], None] | None = None

    # --- what the test does -------------------------------------------------------------------------------

    def settle(self) -> None:
        """Perform everything that is to be done, letting NMIs and #MCs in between any two actions."""
        ht = self.ht
        while True:
            ht.take_interrupts()
            action = core.next_action(ht.state)
            if action is None:
                return
            if self.between is not None:
                self.between(action)
                ht.take_interrupts()
                if core.next_action(ht.state) is not action:
                    continue
            ht.perform(action)

    def order(self, bid: Bid, *, vm: int = 0, req: int | None = None, coord: int = 1) -> None:
        state = self.ht.state
        order = Order(bid, 0, state.inc, coord, self.round, state.req if req is None else req, vm)
        self.ht.on_order(order, 0)
        self.settle()

    def enter(self) -> None:
        """From birth into guest, one instruction run."""
        self.settle()
        self.order(Bid.ATTACH, vm=1)
        self.order(Bid.ADMIT, vm=1)
        self.ht.vcpu.in_guest()
        self.settle()

    def kick(self, number: int) -> None:
        """What a coordinator does to the page."""
        self.words[self.own + REQUEST] = number
        self.words[self.own + PENDING] = 1
        self.words[self.own + KICK_INSNS] = self.insns
        self.words[self.own + KICK_NUMBER] = number

    def interrupt(self, field: int = NMI) -> None:
        number, count = interrupt_parts(self.words[self.own + field])
        self.words[self.own + field] = interrupt_word(number + 1, count + 1)

    # --- what it sees -------------------------------------------------------------------------------------

    @property
    def insns(self) -> int:
        return int(self.words[self.own + INSNS])

    def records(self) -> list[tuple[str, dict[str, Any]]]:
        """(type, data) of what was noted since the last call."""
        return [(kind, data) for _, kind, data in self.stamped()]

    def stamped(self) -> list[tuple[int, str, dict[str, Any]]]:
        """(stamp, type, data), in order of writing."""
        return [(item[1], item[2], item[7]) for item in map(msgpack.unpackb, self._reader.take(10**6))]

    def modes(self) -> list[str]:
        return [f"{data['old']}-{data['new']}" for kind, data in self.records() if kind == "ht.mode"]

    def reports(self) -> list[Report]:
        """What was sent to the coordinator since the last call."""
        sent, self.line.sent = self.line.sent, []
        return [wire.decode_report(frame, 0)[0] for frame in sent]

    def close(self) -> None:
        self._inner.destroy(linger=0)
        sockets.close(self._context, self._link)
        self.ht.page.close()
        self._reader.close()
        for fd in (self.page_fd, self.ring_fd, *self.bells):
            os.close(fd)
