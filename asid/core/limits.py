"""Every limit of the protocol in one place, and how the limits relate.

Times are in nanoseconds. They serve liveness only: no safety argument reads a clock.
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 2

# SMT widths that exist in hardware; a core is n siblings and the code has no other case.
SIBLINGS_ALLOWED: Final = (1, 2, 4, 8)
SIBLINGS_MAX: Final = max(SIBLINGS_ALLOWED)
CORES_MAX: Final = 64
VMS_MAX: Final = 64

# A leave may overtake a waiting ask at most this often in a row; with more, a guest starves from three siblings on.
OVERTAKES_MAX: Final = 1

# One frame on a gate socket, bytes. A report is an array of small integers, far below this.
GATE_FRAME_BYTES_MAX: Final = 4096
# Messages of one hyperthread that can be under way at once: one request, one answer, one `entered`, twice for a retry.
MESSAGES_IN_FLIGHT_MAX: Final = 6

# Handlers nest: an NMI inside an IRQ, a #MC inside an NMI or the other way round, never deeper (a second IRQ waits for
# the end of the first, NMIs latch, MCIP refuses).
INTERRUPT_DEPTH_MAX: Final = 3

KICK_DEADLINE_NS: Final = 50_000_000
# A kicked sibling that stays silent is kicked again once, at this part of the deadline, before it is fenced.
REKICK_PART: Final = 0.5
# A fresh lease is not kicked before its first guest instruction; after this long without one it is.
STICKY_DEADLINE_NS: Final = 50_000_000
TURN_NS: Final = 2_000_000
# A request without an answer is asked again under a new number.
RETRY_NS: Final = 500_000_000
# A coordinator that comes back waits this long for a sibling to be connected again and to report, then fences it.
RESYNC_DEADLINE_NS: Final = 1_000_000_000
# A #MC handler waits this long for its siblings: as long as Linux does on Intel (tolerant level 1, monarch_timeout).
MCE_TIMEOUT_NS: Final = 1_000_000_000
# SIGKILL to a readable pidfd takes up to tens of milliseconds for a large process.
DEATH_DEADLINE_NS: Final = 2_000_000_000

assert KICK_DEADLINE_NS < RETRY_NS, "a sibling in the way is fenced before its waiter asks again"
assert STICKY_DEADLINE_NS < RETRY_NS, "a lease nobody uses is taken back before its waiter asks again"
assert MCE_TIMEOUT_NS <= RESYNC_DEADLINE_NS, "one wait in a handler is no longer than a coordinator's first look"
assert TURN_NS < KICK_DEADLINE_NS
assert MESSAGES_IN_FLIGHT_MAX < 64, "far below any high-water mark, so no gate message is ever dropped for room"
