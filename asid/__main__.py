"""`python -m asid` is the command `asid`, and so is the executable."""

from __future__ import annotations

import os
import signal

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) != signal.SIG_IGN:  # nothing was begun: while the rest is imported, end at once
        signal.signal(_number, lambda number, _: os._exit(128 + number))


def main() -> None:
    """Entry point of the executable."""
    from asid.commands import main as run

    run()


if __name__ == "__main__":
    main()
