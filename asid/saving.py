"""A file that a user names for what is to be kept: tried before the work, and written after it."""

from __future__ import annotations

import os
from pathlib import Path

from asid.errors import AsidError, refused_by_os


def try_to_write(file: Path, what: str, option: str) -> None:
    """Raise why a file could not be written now. It stays as it is, or away. what: that is to be kept in it."""
    try:
        there = file.exists()
        with file.open("ab"):
            pass
        if not there:
            file.unlink()
    except OSError as error:
        raise unwritable(error, file, what, option) from error


def make_for(file: Path, what: str, option: str) -> None:
    """Make the directory of a file. Raise why it cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise unwritable(error, file, what, option) from error


def write(file: Path, text: str, what: str, option: str) -> None:
    """Write a file, whole or not at all: what was there before stays until then. Raise why it cannot be written."""
    try:
        place = file.resolve()  # a link goes on naming the same file
        new = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            new.write_text(text, encoding="utf-8")
            os.replace(new, place)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(error, file, what, option) from error


def unwritable(error: OSError, file: Path, what: str, option: str) -> AsidError:
    """Return why a file could not be written, from what the system said."""
    return refused_by_os(
        error, f"{what} cannot be saved there", where=str(file),
        allowed="a file in a directory with room that you may write", hint=f"Choose another file for {option}.",
    )  # fmt: skip
