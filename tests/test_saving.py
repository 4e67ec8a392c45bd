"""What a user named for a file: written whole, or what was there before is there still."""

from __future__ import annotations

import errno
import os

import pytest

from asid import saving
from asid.errors import HostUnsuitable

WORDS = ("the schedule", "--schedule")


@pytest.mark.parametrize("before", [None, "what was there"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, before):
    file = tmp_path / "hit.json"
    if before is not None:
        file.write_text(before)

    def full(self, text, encoding):
        with open(self, "w", encoding=encoding) as torn:
            torn.write(text[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", full)
        with pytest.raises(HostUnsuitable, match="the schedule cannot be saved there"):
            saving.write(file, "new text", *WORDS)
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_link_goes_on_naming_the_file_that_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "hit.json"
    link.symlink_to(tmp_path / "far" / "real.json")
    saving.write(link, "steps", *WORDS)
    assert link.is_symlink()
    assert (tmp_path / "far" / "real.json").read_text() == "steps"
