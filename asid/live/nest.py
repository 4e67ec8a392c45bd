"""Imported once, by the fork server, before it forks any child: the modules that every child needs, the isolated spaces
that they all ask, and its own peace.

A signal to the daemon's process group (^C in a terminal, `timeout`) must not reach the fork server: its death takes all
children along. So it leads a group of its own; it ends when the daemon does.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import setproctitle

import asid.guest
import asid.live.coordinator
import asid.live.hyperthread
from asid.live import fork_server, isolation, node

__all__ = ["asid"]

node.fork_server_pid = os.getpid()
os.setpgrp()
setproctitle.setproctitle("asid: fork server")
if fork_server.CONFIG in os.environ:
    isolation.build(Path(os.environ[fork_server.CONFIG]))
gc.collect()
gc.freeze()  # what is here is garbage to no child, and a collection would copy its pages
