"""`python -m asid` is the command `asid`."""

from __future__ import annotations

from asid.commands import main

if __name__ == "__main__":
    main()
