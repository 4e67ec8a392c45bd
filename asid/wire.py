"""Gate messages as bytes: positional msgpack arrays of small integers, one frame each.

    report  [version, core, 0, said, ht, inc, coord, round, req, want, void, mode, vm, session, used, answered, cause]
    order   [version, core, 1, bid, ht, inc, coord, round, req, vm, party, cause]

`cause` is the number of the sender's own record that made it send, 0 for none; it is for the journal and never
decides. A frame that is anything else raises WireFault: the receiver counts and drops it, and changes nothing.
Positional arrays, because in a map a key given twice silently wins.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgpack

from asid.core.events import Bid, Mode, Order, Report, Said, Want
from asid.core.limits import CORES_MAX, GATE_FRAME_BYTES_MAX, PROTOCOL_VERSION, SIBLINGS_MAX, VMS_MAX
from asid.errors import AsidError

_SAID: Final = tuple(Said)
_WANT: Final = tuple(Want)
_MODE: Final = tuple(Mode)
_BID: Final = tuple(Bid)
_REPORT, _ORDER = 0, 1
_REPORT_ITEMS, _ORDER_ITEMS = 17, 12
_NUMBER_MAX: Final = 2**63 - 1

_pack: Callable[[Any], bytes] = msgpack.Packer().pack
_unpack: Callable[[bytes], Any] = partial(
    msgpack.unpackb, use_list=False, max_array_len=32, max_map_len=0, max_str_len=0, max_bin_len=0, max_ext_len=0
)


class WireFault(AsidError):
    """A frame that no peer of ours of this version sends."""


def encode_report(core: int, r: Report, cause: int = 0) -> bytes:
    assert 0 <= r.ht < SIBLINGS_MAX
    assert r.req >= 0
    assert r.round >= 0
    said, ht, inc, coord, round_, req, want, void, mode, vm, session, used, answered = r
    flags = 1 if void else 0, 1 if session else 0, 1 if used else 0  # a bool would be packed as one
    return _pack(
        (
            PROTOCOL_VERSION, core, _REPORT, said, ht, inc, coord, round_, req, want, flags[0], mode, vm,
            flags[1], flags[2], answered, cause,
        )
    )  # fmt: skip


def encode_order(core: int, o: Order, cause: int = 0) -> bytes:
    assert 0 <= o.ht < SIBLINGS_MAX
    assert o.req >= 0
    assert o.round >= 0
    return _pack((PROTOCOL_VERSION, core, _ORDER, *o, cause))


def decode_report(frame: bytes, core: int) -> tuple[Report, int]:
    """Return the report and its cause. Raise WireFault for anything else."""
    items = _checked(frame, core, _REPORT, _REPORT_ITEMS)
    _, _, _, said, ht, inc, coord, round_, req, want, void, mode, vm, session, used, answered, cause = items
    if said >= len(_SAID) or want >= len(_WANT) or mode >= len(_MODE) or void > 1 or session > 1 or used > 1:
        raise WireFault("a report with a value out of range", where="gate socket", allowed="a value of its field")
    if ht >= SIBLINGS_MAX or vm > VMS_MAX:
        raise WireFault("a report of a place that no core has", where="gate socket", allowed="a sibling and a VM")
    return (
        Report(
            _SAID[said], ht, inc, coord, round_, req, _WANT[want], bool(void), _MODE[mode], vm,
            bool(session), bool(used), answered,
        ),
        cause,
    )  # fmt: skip


def decode_order(frame: bytes, core: int) -> tuple[Order, int]:
    """Return the order and its cause. Raise WireFault for anything else."""
    items = _checked(frame, core, _ORDER, _ORDER_ITEMS)
    _, _, _, bid, ht, inc, coord, round_, req, vm, party, cause = items
    if bid >= len(_BID) or ht >= SIBLINGS_MAX or vm > VMS_MAX or party >> SIBLINGS_MAX:
        raise WireFault("an order with a value out of range", where="gate socket", allowed="a value of its field")
    return Order(_BID[bid], ht, inc, coord, round_, req, vm, party), cause


def _checked(frame: bytes, core: int, kind: int, size: int) -> tuple[int, ...]:
    assert 0 <= core < CORES_MAX
    if len(frame) > GATE_FRAME_BYTES_MAX:
        raise WireFault(f"a frame of {len(frame)} bytes", where="gate socket", allowed=f"{GATE_FRAME_BYTES_MAX} bytes")
    try:
        items = _unpack(frame)
    except Exception as error:  # msgpack raises eight kinds; all mean the same here
        raise WireFault(f"no msgpack: {type(error).__name__}", where="gate socket") from None
    if type(items) is not tuple or len(items) != size:
        raise WireFault("not an array of the right length", where="gate socket", allowed=f"{size} integers")
    for item in items:
        if type(item) is not int or not 0 <= item <= _NUMBER_MAX:
            raise WireFault("an item that is no number", where="gate socket", allowed="integers from 0 to 2^63-1")
    if items[0] != PROTOCOL_VERSION:
        raise WireFault(f"version {items[0]}", where="gate socket", allowed=str(PROTOCOL_VERSION))
    if items[1] != core or items[2] != kind:
        raise WireFault("a message for somebody else", where="gate socket", state=f"core {items[1]}, kind {items[2]}")
    return items
