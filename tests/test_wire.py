"""Gate messages as bytes: what goes in comes out, and nothing else comes in."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asid import wire
from asid.core.events import Bid, Mode, Order, Report, Said, Want
from asid.core.limits import CORES_MAX, GATE_FRAME_BYTES_MAX, PROTOCOL_VERSION, SIBLINGS_MAX, VMS_MAX

numbers = st.integers(0, 2**63 - 1)
places = st.integers(0, SIBLINGS_MAX - 1)
vms = st.integers(0, VMS_MAX)
cores = st.integers(0, CORES_MAX - 1)
reports = st.builds(
    Report, said=st.sampled_from(Said), ht=places, inc=numbers, coord=numbers, round=numbers, req=numbers,
    want=st.sampled_from(Want), void=st.booleans(), mode=st.sampled_from(Mode), vm=vms, session=st.booleans(),
    used=st.booleans(), answered=numbers,
)  # fmt: skip
orders = st.builds(
    Order, bid=st.sampled_from(Bid), ht=places, inc=numbers, coord=numbers, round=numbers, req=numbers, vm=vms,
    party=st.integers(0, 2**SIBLINGS_MAX - 1),
)  # fmt: skip

REPORT = Report(Said.ASK, 1, 2, 3, 4, 5, Want.ASK, False, Mode.PARKED, 1, False, False, 6)
ORDER = Order(Bid.ADMIT, 1, 2, 3, 4, 5, 1)


@given(cores, reports, numbers)
def test_a_report_comes_back_as_it_went(core, report, cause):
    frame = wire.encode_report(core, report, cause)
    back, cause_back = wire.decode_report(frame, core)
    assert (back, cause_back) == (report, cause)
    # Equal is not enough: True == 1, and an IntEnum equals its number.
    assert [type(item) for item in back] == [type(item) for item in report]
    assert len(frame) <= GATE_FRAME_BYTES_MAX


@given(cores, orders, numbers)
def test_an_order_comes_back_as_it_went(core, order, cause):
    back, cause_back = wire.decode_order(wire.encode_order(core, order, cause), core)
    assert (back, cause_back) == (order, cause)
    assert type(back.bid) is Bid


def items(frame: bytes) -> list[int]:
    found = msgpack.unpackb(frame)
    assert isinstance(found, list)
    return found


GOOD_REPORT = items(wire.encode_report(3, REPORT, 9))
GOOD_ORDER = items(wire.encode_order(3, ORDER, 9))

# Which item of a report, and what is put there.
BAD_REPORT_ITEMS = {
    "another version": (0, PROTOCOL_VERSION + 1),
    "another core": (1, 4),
    "an order's kind": (2, 1),
    "an unknown word": (3, len(Said)),
    "a sibling that no core has": (4, SIBLINGS_MAX),
    "an unknown want": (9, len(Want)),
    "void is no flag": (10, 2),
    "an unknown mode": (11, len(Mode)),
    "a VM that cannot be": (12, VMS_MAX + 1),
    "session is no flag": (13, 2),
    "used is no flag": (14, 2),
    "a negative number": (5, -1),
    "a number of 64 bits": (5, 2**63),
    "a bool": (10, True),
    "a float": (8, 1.0),
    "nil": (8, None),
    "text": (8, "5"),
    "bytes": (8, b"5"),
    "an array": (8, []),
    "a map": (8, {}),
}
BAD_ORDER_ITEMS = {
    "another version": (0, 0),
    "another core": (1, 0),
    "a report's kind": (2, 0),
    "an unknown word": (3, len(Bid)),
    "a sibling that no core has": (4, SIBLINGS_MAX),
    "a VM that cannot be": (9, VMS_MAX + 1),
    "a bool": (9, True),
    "a negative number": (10, -1),
}


@pytest.mark.parametrize("at_value", BAD_REPORT_ITEMS.values(), ids=BAD_REPORT_ITEMS)
def test_a_report_with_a_bad_item_is_refused(at_value):
    at, value = at_value
    bad = [*GOOD_REPORT[:at], value, *GOOD_REPORT[at + 1 :]]
    with pytest.raises(wire.WireFault):
        wire.decode_report(msgpack.packb(bad), 3)


@pytest.mark.parametrize("at_value", BAD_ORDER_ITEMS.values(), ids=BAD_ORDER_ITEMS)
def test_an_order_with_a_bad_item_is_refused(at_value):
    at, value = at_value
    bad = [*GOOD_ORDER[:at], value, *GOOD_ORDER[at + 1 :]]
    with pytest.raises(wire.WireFault):
        wire.decode_order(msgpack.packb(bad), 3)


FRAMES = {
    "nothing": b"",
    "nil": b"\xc0",
    "a number": b"\x05",
    "an empty array": b"\x90",
    "one item short": msgpack.packb(GOOD_REPORT[:-1]),
    "one item too many": msgpack.packb([*GOOD_REPORT, 0]),
    "a map": msgpack.packb(dict(enumerate(GOOD_REPORT))),
    "cut": msgpack.packb(GOOD_REPORT)[:-1],
    "with a tail": msgpack.packb(GOOD_REPORT) + b"\x00",
    "a header for 2^32-1 items": b"\xdd\xff\xff\xff\xff",
    "a header for 2^32-1 bytes": b"\xc6\xff\xff\xff\xff",
    "a bomb of empty arrays": b"\xdc\xff\xff" + b"\x90" * 1000,
    "nested a thousand times": b"\x91" * 1000 + b"\x00",
    "nested beyond the decoder's stack": b"\x91" * 3000 + b"\x00",
    "an extension": b"\xd4\x05\x00",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "the byte that means nothing": b"\xc1",
    "not UTF-8": b"\xa2\xff\xfe",
    "longer than any frame": b"\x90" * (GATE_FRAME_BYTES_MAX + 1),
    "the control protocol's": b"ASID1",
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("decode", [wire.decode_report, wire.decode_order])
def test_a_frame_that_is_no_message_is_refused(decode, frame):
    with pytest.raises(wire.WireFault):
        decode(frame, 3)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_raise_nothing_else(frame):
    for decode in (wire.decode_report, wire.decode_order):
        with pytest.raises(wire.WireFault):
            decode(frame, 3)


@given(st.data())
def test_a_message_with_one_byte_changed_is_refused_or_a_message(data):
    frame = bytearray(wire.encode_report(3, REPORT, 9))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    try:
        report, cause = wire.decode_report(bytes(frame), 3)
    except wire.WireFault:
        return
    # What got through is a message that could have been sent, to the last bit.
    assert wire.encode_report(3, report, cause) == bytes(frame) or items(bytes(frame))[:3] == [1, 3, 0]
    assert report.ht < SIBLINGS_MAX and report.vm <= VMS_MAX


def test_the_error_says_where_and_what_without_showing_the_input():
    with pytest.raises(wire.WireFault) as caught:
        wire.decode_report(b"\x91" * 1000 + b"secret", 3)
    assert "gate socket" in str(caught.value) and "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_an_encoder_refuses_a_place_that_no_core_has():
    with pytest.raises(AssertionError):
        wire.encode_report(0, REPORT._replace(ht=SIBLINGS_MAX))
    with pytest.raises(AssertionError):
        wire.encode_order(0, ORDER._replace(req=-1))
