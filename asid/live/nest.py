"""Imported once, by the fork server, before it forks any child: the modules that every child needs, and its own peace.

A signal to the daemon's process group (^C in a terminal, `timeout`) must not reach the fork server: its death takes all
children along. So it leads a group of its own; it ends when the daemon does.
"""

from __future__ import annotations

import gc
import os

import setproctitle

import asid.guest
import asid.live.coordinator
import asid.live.hyperthread
from asid.live import node

__all__ = ["asid"]

node.fork_server_pid = os.getpid()
os.setpgrp()
setproctitle.setproctitle("asid: fork server")
gc.collect()
gc.freeze()  # what is here is garbage to no child, and a collection would copy its pages
