"""The rows of the table of naive variants about machine checks that reach all siblings."""

from __future__ import annotations

from typing import Final

import explore_naive_checks as naive
from explore_planting import Mutant

from asid.explore.models import build

MACHINE_CHECKS: Final = (
    Mutant(
        "V41", "the order of arrival in a #MC rendezvous is read, then written", build("n2v1-broadcast"), "unsafe",
        "Both read that nobody is in, and both are the first.",
        "one atomic step", naive.order_read_then_written,
    ),
    Mutant(
        "V41b", "#MC handlers do not wait for their turn", build("n2v1-broadcast"), "unsafe",
        "All work at once, the monarch among them.",
        "each in the order of arrival", naive.all_at_once,
    ),
    Mutant(
        "V42", "a #MC handler waits without a time-out", build("n2v1-broadcast-stop"), "deadlock",
        "A stopped sibling never comes, and nobody is left who could have it fenced.",
        "a time-out, then the fence (I15)", naive.waits_for_ever,
    ),
    Mutant(
        "V43", "the words of the dead in a #MC rendezvous stay", build("n2v1-broadcast-death"), "deadlock",
        "The other waits no longer in its handler, and then in front of guest for ever.",
        "the coordinator closes the words of the dead (R15)", naive.words_of_the_dead_stay,
    ),
    Mutant(
        "V44", "one #MC rendezvous is like another", build("n2v1-broadcast2"), "unsafe",
        "The word of the first counts in the second: the sibling was not even hit yet.",
        "the number of the broadcast in every word", naive.one_rendezvous_like_another,
    ),
)  # fmt: skip
