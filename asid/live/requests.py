"""From frames to a request, and from an answer to frames: the control protocol's outermost skin.

Frames after routing are `b"ASID1"` and one msgpack map (docs/protocol.md); a REQ client's empty delimiter is accepted
and sent back. Everything here is strict and cheap, in this order: number of frames, size, magic, decoding, depth and
width, one encoding only, fields. Size comes before decoding because a byte of msgpack can become 64 bytes of objects;
the plain decoder is used, once per frame, never the streaming one, which can crash after a caught error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

from asid import ops
from asid.errors import (
    AsidError,
    BadArgument,
    ControlError,
    Expired,
    Internal,
    LimitExceeded,
    NoAnswer,
    NoSuchObject,
    UnknownOp,
    WireVersion,
)
from asid.optypes import NAME_LENGTH_MAX

NS_PER_MS = 1_000_000
OWN_FRAMES = 2  # magic and body, without a delimiter
HINT = "asid schema ops; docs/protocol.md has the form of a message."
STATE = "nothing of it was done"
UNFIT = (BadArgument, UnknownOp, NoSuchObject, WireVersion, LimitExceeded, Expired)  # faults of a request itself


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request. deadline_ns: on the daemon's clock. args: not yet checked."""

    id: str
    op: str
    args: object
    idem: str
    deadline_ns: int


def split_frames(frames: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return (the delimiter to send back, the protocol's own frames)."""
    return ([b""], frames[1:]) if frames[:1] == [b""] else ([], frames)


def open_body(frames: list[bytes]) -> dict[str, Any]:
    """Return the map of a request's frames (without delimiter). Raise ControlError when it is not one."""
    if len(frames) != OWN_FRAMES:
        what = f"{min(len(frames), 10_000)} frames"
        raise BadArgument(what, where="message", allowed=f"{OWN_FRAMES} frames: magic and body")
    magic, body = frames
    if len(body) > ops.REQUEST_BYTES_MAX or len(magic) > ops.REQUEST_BYTES_MAX:
        raise LimitExceeded(
            f"{max(len(body), len(magic))} bytes",
            where="message",
            allowed=f"at most {ops.REQUEST_BYTES_MAX} bytes",
            hint="Send less at a time.",
            data={"limit": "request_bytes"},
        )
    if magic != ops.MAGIC:
        if magic.startswith(b"ASID"):
            raise WireVersion("another protocol", where="first frame", allowed="ASID1", hint="Update asid.")
        raise BadArgument("not a message of asid", where="first frame", allowed="ASID1")
    value = _decode(body)
    if not isinstance(value, dict):
        raise BadArgument(f"a {type(value).__name__}", where="body", allowed="a map")
    _check_shape(value)
    # Encoding what was decoded must give the same bytes, else a key came twice (the decoder keeps the last,
    # silently) or something is not in its shortest form.
    if msgpack.packb(value) != body:
        raise BadArgument(
            "a key that comes twice, or a value not in its shortest form", where="body", allowed="as msgpack packs it"
        )
    return value


def _decode(body: bytes) -> object:
    try:
        return msgpack.unpackb(body, raw=False, max_array_len=ops.ITEMS_MAX, max_map_len=ops.ITEMS_MAX)
    except Exception as error:  # ValueError, FormatError, StackError, ExtraData, UnicodeDecodeError, TypeError, ...
        raise BadArgument(
            f"not msgpack ({type(error).__name__})", where="body", allowed=f"one map, {ops.ITEMS_MAX} entries at most"
        ) from None


def _check_shape(value: object) -> None:
    """Refuse what is too deep and every type but map, list, str, bytes, int, bool and nil. Iterative: no recursion."""
    level: list[object] = [value]
    for _ in range(ops.NESTING_MAX):
        deeper: list[object] = []
        for item in level:
            if type(item) is dict:
                if not all(type(key) is str for key in item):
                    raise BadArgument("a key that is not text", where="body", allowed="maps with text keys")
                deeper += item.values()
            elif type(item) is list:
                deeper += item
            elif item is not None and type(item) not in (str, bytes, int, bool):
                raise BadArgument(f"a {type(item).__name__}", where="body", allowed="map, list, text, integer or bool")
        if not deeper:
            return
        level = deeper
    raise LimitExceeded(
        f"nested deeper than {ops.NESTING_MAX}",
        where="body",
        allowed=f"at most {ops.NESTING_MAX} levels",
        data={"limit": "nesting"},
    )


_FIELDS = {"v", "id", "op", "args", "idem", "deadline_ms", "t"}


def read_id(body: dict[str, Any]) -> str:
    """Return the request's id, empty when it has none that can be sent back."""
    given = body.get("id")
    return given if type(given) is str and 0 < len(given) <= NAME_LENGTH_MAX else ""


def read_request(body: dict[str, Any], now_ns: int) -> Request:
    """Return the request in `body`. Raise ControlError with the name of the field that is wrong.

    `t` is the client's CLOCK_MONOTONIC when it sent, so that time spent in a queue counts. A clock of another host
    says nothing here, so a `t` that lies in the future is taken as now.
    """
    version = body.get("v")
    if type(version) is not int:
        raise BadArgument(_kind(version), where="v", allowed=f"the integer {ops.PROTOCOL_VERSION}")
    if version != ops.PROTOCOL_VERSION:
        raise WireVersion(
            f"protocol {version}", where="v", allowed=str(ops.PROTOCOL_VERSION), hint="Update the older end.",
            data={"versions": [ops.PROTOCOL_VERSION]},
        )  # fmt: skip
    unknown = sorted(set(body) - _FIELDS)
    if unknown:
        raise BadArgument("an unknown field", where=unknown[0][:NAME_LENGTH_MAX], allowed=f"one of {sorted(_FIELDS)}")
    sent_ns = _integer(body, "t", now_ns, 0, 2**63 - 1)
    deadline_ms = _integer(body, "deadline_ms", ops.DEADLINE_MS_DEFAULT, 1, ops.DEADLINE_MS_MAX)
    return Request(
        id=_text(body, "id"),
        op=_text(body, "op"),
        args=body.get("args", {}),
        idem=_text(body, "idem") if "idem" in body else "",
        deadline_ns=min(sent_ns, now_ns) + deadline_ms * NS_PER_MS,
    )


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if type(value) is not str or not 0 < len(value) <= NAME_LENGTH_MAX or not value.isprintable():
        raise BadArgument(_kind(value), where=field, allowed=f"1 to {NAME_LENGTH_MAX} printable characters")
    return value


def _integer(body: dict[str, Any], field: str, default: int, low: int, high: int) -> int:
    value = body.get(field, default)
    if type(value) is not int or not low <= value <= high:
        raise BadArgument(_kind(value), where=field, allowed=f"an integer from {low} to {high}")
    return value


def _kind(value: object) -> str:
    """Name a value without printing more of it than is safe."""
    if value is None:
        return "missing"
    if type(value) is int:
        return str(value)
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, str | bytes | list | dict) else "")


def complete(error: ControlError) -> ControlError:
    """Fill in what a malformed request's error has in common with all of them: the state it left, and the way out."""
    error.state = error.state or STATE
    error.allowed = error.allowed or ("as the operation declares it" if isinstance(error, BadArgument) else "")
    error.hint = error.hint or HINT
    return error


def error_map(error: ControlError) -> dict[str, Any]:
    """Return the `err` map of an answer. The five parts are in `data`, so that a client can build the error again."""
    parts = {"what": error.what, "where": error.where, "state": error.state, "allowed": error.allowed}
    return {
        "class": error.wire_class,
        "msg": str(error),
        "hint": error.hint,
        "data": {**{name: text for name, text in parts.items() if text}, **error.data},
        "applied": error.applied,
        "retry": error.retry,
    }


def as_control_error(error: Exception) -> ControlError:
    """Return what a client is told about `error`: itself, a BadArgument for a bad form, Expired for no answer from
    within, or an Internal."""
    if isinstance(error, ControlError):
        return error
    if isinstance(error, NoAnswer):
        late = Expired(error.what, where=error.where, state=error.state, allowed=error.allowed, hint=error.hint)
        vars(late)["applied"] = error.applied  # begun and not finished, other than what came too late to begin
        return late
    if isinstance(error, AsidError) and error.exit_code == BadArgument.exit_code:
        return BadArgument(error.what, where=error.where, state=error.state, allowed=error.allowed, hint=error.hint)
    return Internal(
        f"a fault of the daemon ({type(error).__name__})", hint="The daemon's log has the details; please report it."
    )


def encode_answer(request_id: str, answer: dict[str, Any], seq: int, now_ns: int) -> bytes:
    """Return the body of an answer; `answer` is {"ok": True, "ret": ...} or {"ok": False, "err": ...}."""
    packed: bytes = msgpack.packb({"v": ops.PROTOCOL_VERSION, "id": request_id, **answer, "seq": seq, "t": now_ns})
    return packed
