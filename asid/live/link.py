"""A child's line to the daemon: messages out in order, kept while the daemon cannot be reached yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import zmq

from asid.live import sockets
from asid.live.node import Frames, Node

RETRY_NS = 1_000_000
KEPT_MAX = 10_000  # messages; a daemon that is stopped for long costs the oldest

_pack: Callable[[Any], bytes] = msgpack.Packer().pack


class Link:
    """Tells the daemon; never waits for it."""

    def __init__(
        self, node: Node, context: zmq.Context[zmq.Socket[bytes]], path: str, identity: str,
        on_message: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self._node = node
        self._kept: deque[bytes] = deque(maxlen=KEPT_MAX)
        self._socket = sockets.daemon_link_dealer(context, Path(path), identity.encode())

        def receive(frames: Frames) -> None:
            on_message(msgpack.unpackb(frames[-1]))

        node.add_socket(self._socket, receive)

    def tell(self, message: dict[str, Any]) -> None:
        self._kept.append(_pack(message))
        self._flush()

    def _flush(self) -> None:
        while self._kept:
            if not sockets.send_nonblocking(self._socket, [self._kept[0]]):
                self._node.set_timer(self, RETRY_NS, self._flush)
                return
            self._kept.popleft()
