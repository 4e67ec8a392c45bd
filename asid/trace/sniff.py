"""What a file is, before anybody reads it as something else; and the errors for the wrong file in the wrong place.

`sniff` looks at the first SNIFF_BYTES only and never raises on content: it names what it sees. `open_text` opens a file
for a reader and refuses what is not text of the wanted kind, saying what it is and how to make the right one of it.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from asid.errors import InputError, PermissionRefused
from asid.trace.lines import LossLine, split_line

Kind = Literal[
    "trace",
    "perf-kvm-stat",
    "perf-histogram",
    "mix-table",
    "trace-dat",
    "perf-data",
    "bcc-kvmexit",
    "kvm-stat",
    "systemtap",
    "compressed",
    "binary",
    "empty",
    "unknown",
]

SNIFF_BYTES: Final = 64 * 1024
FILE_BYTES_MAX: Final = 4 << 30  # a reader keeps every pair in memory; 4 GiB of text is about 30 million events
LINE_BYTES_MAX: Final = 16 * 1024  # the longest real line is under 400 bytes

_MAGIC: Final[tuple[tuple[bytes, Kind], ...]] = (
    (b"\x17\x08Dtracing", "trace-dat"),
    (b"PERFILE2", "perf-data"),
    (b"\x1f\x8b", "compressed"),
    (b"\x28\xb5\x2f\xfd", "compressed"),
    (b"\xfd7zXZ", "compressed"),
    (b"BZh", "compressed"),
)
_TABLE_HEAD = re.compile(r"^\s*(?:VM-EXIT|TRAP-EVENT|MMIO Access|IO Port Access|Event name)\s+Samples\s", re.MULTILINE)
_HISTOGRAM = re.compile(r"^\s*\d+(?:\.\d+)?%\s+.*reason \S.* rip 0x", re.MULTILINE)
_MIX_TABLE = re.compile(r"^\s*\[\[exit\]\]\s*(?:#.*)?$", re.MULTILINE)
_BCC = re.compile(r"^(?:PID\s+)?(?:TIDS?\s+)?KVM_EXIT_REASON\s+COUNT|^TIME\(s\)\s+COMM\s+PID\s+MESSAGE", re.MULTILINE)
_KVM_STAT = re.compile(r"^kvm statistics\b", re.MULTILINE)
_SYSTEMTAP = re.compile(r"^# reason: count sum", re.MULTILINE)
_KVM_TEXT = re.compile(r"\bkvm_(?:exit|entry)\b")

# What each kind is called in an error, and what to do with such a file.
_DESCRIPTION: Final[dict[Kind, tuple[str, str]]] = {
    "trace": ("the text of a trace", "Use it as guest source 'trace' (guest.file), or `asid replay FILE`."),
    "perf-kvm-stat": (
        "a perf kvm stat table: counts and mean costs, no order of events",
        "Use it as the table of guest source 'mix' (guest.table), or record a trace: trace-cmd record -e kvm.",
    ),
    "perf-histogram": (
        "a perf top or perf report histogram: it has no order and no time",
        "Record the events themselves: perf record -e 'kvm:*' and perf script, or trace-cmd record -e kvm.",
    ),
    "mix-table": ("a mix table of asid", "Use it as the table of guest source 'mix' (guest.table)."),
    "trace-dat": ("a binary trace.dat of trace-cmd", "Turn it into text: trace-cmd report -R -t -i FILE > FILE.txt"),
    "perf-data": ("a binary perf.data", "Turn it into text: perf script --ns -i FILE > FILE.txt"),
    "bcc-kvmexit": (
        "output of a BCC tool: counts without times",
        "Record a trace (trace-cmd record -e kvm) or a table (perf kvm stat report).",
    ),
    "kvm-stat": (
        "output of kvm_stat: counts of events, not of exit reasons",
        "Record a trace (trace-cmd record -e kvm) or a table (perf kvm stat report).",
    ),
    "systemtap": (
        "output of a SystemTap script: counts by number",
        "Record a trace (trace-cmd record -e kvm) or a table (perf kvm stat report).",
    ),
    "compressed": ("a compressed file", "Decompress it first: zcat FILE > FILE.txt, or zstdcat, xzcat, bzcat."),
    "binary": ("a binary file", "Give text: trace-cmd report -R -t -i FILE, or perf script --ns -i FILE."),
    "empty": ("an empty file", "Was the recording stopped too early? Record again: trace-cmd record -e kvm."),
    "unknown": ("text without any VM exit", "Make one with trace-cmd record -e kvm, then trace-cmd report -R -t."),
}


def sniff(path: Path | str) -> Kind:
    """Return what the file at `path` looks like. Raise InputError or PermissionRefused when it cannot be opened."""
    return sniff_bytes(_read_head(Path(path)))


def sniff_bytes(head: bytes) -> Kind:
    """Return what a file that begins with `head` looks like."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if not head.strip():
        return "empty"
    if b"\0" in head:
        return "binary"
    text = head.decode("utf-8", "replace")
    for line in text.splitlines():
        if isinstance(split_line(line), LossLine):
            continue
        if _KVM_TEXT.search(line) and not isinstance(split_line(line), str):
            return "trace"
    tables: tuple[tuple[re.Pattern[str], Kind], ...] = (
        (_TABLE_HEAD, "perf-kvm-stat"),
        (_HISTOGRAM, "perf-histogram"),
        (_MIX_TABLE, "mix-table"),
        (_BCC, "bcc-kvmexit"),
        (_KVM_STAT, "kvm-stat"),
        (_SYSTEMTAP, "systemtap"),
    )
    for pattern, kind in tables:
        if pattern.search(text):
            return kind
    if any(not isinstance(split_line(line), str | LossLine) for line in text.splitlines()):
        return "trace"  # other events than kvm's in front
    return "unknown"


def foreign(path: Path | str, kind: Kind, wanted: str) -> InputError:
    """Return the error for a file that is a `kind` where `wanted` was needed."""
    what, hint = _DESCRIPTION[kind]
    return InputError(
        f"this is {what}",
        where=str(path),
        state=f"recognised as {kind}",
        allowed=wanted,
        hint=hint.replace("FILE", str(path)),
        data={"kind": kind},
    )


def read_lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (number from 1, text without its line end, has a line end) for each line of a text file.

    Bytes that are not UTF-8 become U+FFFD. A line over LINE_BYTES_MAX comes cut off, as one line. Raise InputError when
    the file is too large or turns out to be binary, PermissionRefused or InputError when it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            if size > FILE_BYTES_MAX:
                raise InputError(
                    f"the file has {size} bytes",
                    where=str(path),
                    state="not read",
                    allowed=f"at most {FILE_BYTES_MAX} bytes",
                    hint="Cut it by time: trace-cmd split, or perf script --time.",
                )
            number = 0
            while raw := stream.readline(LINE_BYTES_MAX):
                number += 1
                if b"\0" in raw:
                    raise foreign(path, "binary", "text")
                ended = raw.endswith(b"\n")
                while not ended and (more := stream.readline(LINE_BYTES_MAX)):
                    ended = more.endswith(b"\n")
                yield number, raw.decode("utf-8", "replace").rstrip("\r\n"), ended
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_head(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode  # before opening: opening a FIFO waits for its writer, perhaps for ever
        if not stat.S_ISREG(mode):
            raise InputError(
                "is not a regular file",
                where=str(path),
                state="a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket",
                allowed="a file with the text of a recording",
                hint="Save the output of the tool to a file first.",
            )
        with path.open("rb") as stream:
            return stream.read(SNIFF_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | ValueError) -> InputError | PermissionRefused:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    if isinstance(error, PermissionError):
        return PermissionRefused(
            "cannot be read",
            where=str(path),
            state=reason,
            allowed="a file that you may read",
            hint="Traces of trace-cmd and perf often belong to root: sudo chown $USER, or copy the file.",
        )
    return InputError(
        "cannot be read",
        where=str(path),
        state=reason,
        allowed="an existing text file",
        hint="Check the path; a path in a configuration counts from the configuration's own directory.",
    )
