"""The models that `asid explore` knows by name, and how large each is.

A name says what is in it: `n2v1-nmi-send` is two siblings, both running vCPUs of one VM, one NMI at any step, `send`
kicks (without `-send`: `ack`). The sizes are pinned: `states` and `transitions` are exact, and a change there is a
change of behaviour, to be explained where it is made. 0 stands for a size that nobody has counted yet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, NamedTuple

from asid.core.apic import Apic
from asid.core.events import Kick
from asid.core.exits import SVM, VMX
from asid.core.gate import Rooms
from asid.core.policies.base import Policy
from asid.explore.parts import Budget, Model


class Named(NamedTuple):
    """A model by name, with its pinned size. `default`: in the set that `asid explore` runs by itself."""

    name: str
    model: Model
    default: bool
    states: int
    transitions: int
    depth: int


# What comes from outside, by the word for it in a model's name.
BUDGETS: Final[dict[str, Budget]] = {
    "": Budget(),
    "nmi": Budget(nmi=1),
    "nmi2": Budget(nmi=2),
    "nmi-mce": Budget(nmi=1, mce=1),
    "kill": Budget(kill=1, restart=1),
    "death": Budget(kill=1),
    "coordinator": Budget(coordinator=1),
    "coordinator2": Budget(coordinator=2),
    "loss": Budget(loss=1, retry=1),
    "timers": Budget(timer=1, restart=1),
    "hotplug": Budget(hotplug=2),
    "hold": Budget(hold=1),
    "unplug": Budget(unplug=1, restart=1, hotplug=1),
    "nmi-kill": Budget(nmi=1, kill=1, restart=1),
    "nmi-coordinator": Budget(nmi=1, coordinator=1),
    "coordinator-kill": Budget(coordinator=1, kill=1, restart=1),
    "nmi-coordinator-kill": Budget(nmi=1, coordinator=1, kill=1, restart=1),
    "coordinator-hotplug": Budget(coordinator=1, hotplug=2),
    "coordinator-hold": Budget(coordinator=1, hold=1),
    "coordinator-timers": Budget(coordinator=1, timer=1, restart=1),
    "coordinator-loss": Budget(coordinator=1, loss=1),
    "coordinator-loss-birth": Budget(coordinator=1, loss=1, restart=1),
    "loss-hotplug": Budget(loss=1, hotplug=2),
    "loss-kill": Budget(loss=1, kill=1, restart=1),
    "irq": Budget(irq=1),
    "irq-hotplug": Budget(irq=1, hotplug=1),
    "irq-unplug": Budget(irq=1, unplug=1),
    "irq-nmi": Budget(irq=1, nmi=1),
    "irq-loss": Budget(irq=1, loss=1),
    "broadcast": Budget(broadcast=1),
    "broadcast2": Budget(broadcast=2),
    "nmi-broadcast": Budget(nmi=1, broadcast=1),
    "broadcast-death": Budget(broadcast=1, kill=1),
    "broadcast-kill": Budget(broadcast=1, kill=1, restart=1),
    "broadcast-stop": Budget(broadcast=1, stop=1),
    "broadcast2-stop": Budget(broadcast=2, stop=1),
    "mce-fatal": Budget(mce=1, fatal=1),
    "broadcast-fatal": Budget(broadcast=1, fatal=1),
    "broadcast-timers": Budget(broadcast=1, timer=1, restart=1),
}
# Which VM each sibling runs, by the first word of a model's name.
VMS: Final[dict[str, tuple[int, ...]]] = {
    "n1": (1,),
    "n2i1": (0, 1),  # one without a vCPU
    "n2v1": (1, 1),
    "n2v2": (1, 2),
    "n3v1": (1, 1, 1),
    "n3v2": (1, 1, 2),
    "n4v1": (1, 1, 1, 1),
    "n3i3": (0, 0, 0),  # nobody runs a vCPU
    "n3i2": (1, 0, 0),
    "n4i4": (0, 0, 0, 0),
}


def of_policy(policy: Policy, vms: tuple[int, ...] = (1, 1), **more: Any) -> Model:
    """Return the model of a core under a policy, with its buffers and its idling. more: other fields of it.

    What a live hyperthread and a live gate are told is asked for here, too, and what is done at an exit: a policy may
    say it by a method of its own.
    """
    told, gate = policy.hyperthread_spec(0, tuple(range(1, len(vms)))), policy.gate_spec()
    model = Model(
        vms, told.kick, gate.rooms, halts=True, overtakes_max=gate.overtakes_max, guarded=told.guarded,
        host_alone=gate.host_alone, idle_kick=told.idle_kick, irq_kick=told.irq_kick,
        idle_exits=told.idle_kick is not None,
        fast_exits=not all(policy.needs_full(False, reason.name) for reason in (*VMX, *SVM)),
        taints=True, flush=told.flush, irqs_off=told.irqs_off,
    )  # fmt: skip
    return replace(model, **more)


# What else a word in a model's name says.
WORDS: Final[dict[str, tuple[tuple[str, Any], ...]]] = {
    "send": (("kick", Kick.SEND),),
    "stun": (("kick", Kick.STUN),),
    "rendezvous": (("kick", Kick.RENDEZVOUS),),
    "nosmt": (("rooms", Rooms.HYPERTHREAD),),
    "halts": (("halts", True),),
    "torn": (("torn", True),),
    "full": (("fast_exits", False),),  # every exit is a leave
    "flush": (("taints", True), ("flush", True)),
    "xapic": (("apic", Apic.XAPIC),),
    "shorthand": (("apic", Apic.SHORTHAND),),
    "unfixed": (("icr_fix", False),),
    "isolated": (("nmi_isolated", True),),
}


def build(name: str) -> Model:
    """Return the model that a name describes."""
    first, *rest = name.split("-")
    faults = "-".join(word for word in rest if word not in WORDS)
    return replace(Model(VMS[first], budget=BUDGETS[faults]), **{k: v for word in rest for k, v in WORDS.get(word, ())})


# Name, and the pinned states, transitions and depth. Smallest first within each group.
DEFAULT: Final = {
    "n1": (21, 27, 13),
    "n2v1": (736, 1_716, 47),
    "n2v2": (689, 1_332, 47),
    "n2v1-nosmt": (689, 1_332, 47),
    "n2v1-halts": (1_048, 2_480, 49),
    "n2v2-halts": (1_037, 2_132, 49),
    "n2v1-nmi": (19_015, 49_284, 68),
    "n2v2-nmi": (13_573, 33_210, 68),
    "n2v1-nmi-mce": (371_236, 1_031_094, 74),
    "n2v2-nmi-mce": (234_340, 642_072, 74),
    "n2v1-nmi-torn": (33_127, 86_118, 76),
    "n2v1-kill": (155_682, 521_296, 168),
    "n2v2-kill": (89_769, 237_832, 155),
    "n2v1-coordinator": (19_122, 52_774, 99),
    "n2v2-coordinator": (13_659, 31_890, 86),
    "n2v1-coordinator-loss": (107_418, 341_468, 101),
    "n2v2-coordinator-loss": (100_327, 271_933, 88),
    "n2v1-loss": (16_574, 47_712, 58),
    "n2v2-loss": (34_146, 91_818, 86),
    "n2v1-timers": (54_463, 180_164, 169),
    "n2v2-timers": (28_301, 71_680, 156),
    "n2v1-hotplug": (24_240, 68_566, 69),
    "n2v2-hotplug": (28_360, 77_492, 72),
    "n2v1-hold": (6_742, 18_496, 54),
    "n2v2-hold": (3_535, 8_764, 54),
    "n2v1-unplug": (76_704, 227_784, 148),
    "n3v1": (26_820, 86_763, 66),
    "n3v2": (22_578, 61_322, 66),
    "n3v1-death": (187_008, 694_578, 93),
    "n3v2-death": (171_253, 570_041, 83),
    "n1-nmi-mce-send": (1_364, 2_294, 24),
    "n2v1-send": (2_770, 8_160, 45),
    "n2v2-send": (841, 1_776, 37),
    "n2v1-halts-send": (5_852, 16_792, 53),
    "n2v1-nmi-send": (54_843, 165_726, 60),
    "n2v2-nmi-send": (14_745, 38_728, 48),
    "n2v2-nmi-mce-send": (237_146, 690_320, 53),
    "n2v1-torn-send": (6_574, 19_310, 57),
    "n2v1-kill-send": (31_018, 114_692, 57),
    "n2v2-kill-send": (33_835, 92_402, 169),
    "n2v1-coordinator-send": (168_587, 628_510, 80),
    "n2v2-coordinator-send": (14_033, 38_066, 51),
    "n2v1-loss-send": (25_677, 84_634, 49),
    "n2v2-loss-send": (23_194, 65_156, 50),
    "n2v1-timers-send": (7_548, 25_702, 46),
    "n2v1-hotplug-send": (40_589, 131_516, 55),
    "n3v2-send": (63_577, 203_242, 71),
    "n2v1-flush": (827, 1_916, 51),
    "n2v2-flush": (755, 1_438, 51),
    "n2v1-nmi-flush": (21_982, 56_056, 72),
    "n2v2-nmi-flush": (14_935, 35_940, 72),
    "n2v1-coordinator-flush": (20_381, 55_834, 106),
    "n2v1-send-flush": (4_089, 11_894, 49),
    "n2v1-stun": (2_770, 8_160, 45),
    "n2v2-stun": (841, 1_776, 37),
    "n2v1-stun-flush": (3_297, 9_614, 50),
    "n2v1-nmi-stun-flush": (66_691, 199_244, 65),
    "n2v2-nmi-stun-flush": (17_225, 44_486, 51),
    "n2v1-full": (428, 832, 47),
    "n2v1-full-send": (2_710, 7_626, 49),
    "n2v1-full-stun": (2_710, 7_626, 49),
    "n2v1-full-rendezvous": (745, 1_442, 51),
    "n2v1-rendezvous": (1_149, 2_598, 51),
    "n2v2-rendezvous": (1_603, 2_886, 74),
    "n2v1-halts-rendezvous": (3_091, 6_896, 85),
    "n2v1-nmi-rendezvous": (28_274, 70_518, 72),
    "n2v2-nmi-rendezvous": (29_381, 70_828, 98),
    "n2v1-hotplug-rendezvous": (45_102, 123_146, 76),
    "n2v1-coordinator-rendezvous": (27_341, 74_823, 108),
    "n2v1-loss-rendezvous": (24_803, 66_970, 85),
    "n3v1-rendezvous": (73_663, 240_732, 74),
    "n2v1-unplug-rendezvous": (145_543, 424_776, 163),
    "n2v1-death-rendezvous": (5_685, 15_342, 81),
    "n3v2-rendezvous": (70_794, 184_519, 96),
    "n2v1-irq": (4_187, 11_376, 56),
    "n2v2-irq": (4_624, 11_588, 54),
    "n2v1-irq-send": (15_750, 48_756, 45),
    "n2v1-irq-stun": (15_750, 48_756, 45),
    "n2v1-irq-rendezvous": (5_918, 15_360, 64),
    "n2v1-halts-irq": (5_839, 16_488, 56),
    "n2v1-irq-flush": (4_544, 12_180, 61),
    "n2v1-irq-stun-flush": (19_740, 59_840, 50),
    "n2v1-irq-hotplug": (35_883, 110_560, 71),
    "n2v1-irq-unplug": (43_529, 130_906, 71),
    "n1-irq-loss": (220, 390, 16),
    "n2v1-irq-loss": (22_157, 64_282, 58),
    "n2v1-xapic-send": (5_650, 16_696, 66),
    "n2v1-xapic-nmi": (32_251, 81_846, 73),
    "n2v2-xapic-nmi": (23_393, 56_792, 73),
    "n2v1-shorthand-send": (4_014, 11_728, 54),
    "n2v1-shorthand-nmi": (26_877, 68_606, 71),
    "n2v1-isolated-nmi": (7_140, 19_948, 65),
    "n2v1-isolated-nmi-send": (22_469, 74_384, 54),
    "n2v1-xapic-isolated-nmi": (17_408, 45_580, 70),
    "n2v1-shorthand-isolated-nmi": (16_005, 41_956, 69),
    "n2v1-shorthand-isolated-nmi-send": (74_257, 227_814, 67),
    "n2v1-shorthand-isolated-nmi-send-unfixed": (67_299, 218_514, 65),
    "n2v1-xapic-isolated-nmi-send": (110_347, 340_358, 82),
    "n2v2-xapic-isolated-nmi-send": (24_680, 62_752, 77),
    "n1-broadcast": (312, 485, 27),
    "n1-broadcast-stop": (495, 742, 27),
    "n1-mce-fatal": (311, 481, 22),
    "n1-broadcast-fatal": (583, 887, 28),
    "n2i1-broadcast-fatal": (21_724, 54_994, 51),
    "n2v1-mce-fatal": (44_011, 112_678, 70),
    "n3i3-broadcast": (6_968, 26_300, 40),
    "n3i3-broadcast-stop": (83_582, 299_897, 40),
    "n2v2-broadcast": (98_970, 245_659, 85),
    "n3i3-broadcast-death": (113_518, 413_187, 41),
    "n2v1-broadcast": (162_661, 402_361, 85),
}
LARGE: Final = {
    "n2v2-unplug": (79_619, 220_224, 133),
    "n2v2-unplug-send": (64_897, 191_328, 139),
    "n2v1-nmi-torn-send": (119_455, 358_286, 74),
    "n2v2-nmi-mce-torn": (346_726, 946_642, 85),
    "n3v2-torn": (56_163, 154_151, 89),
    "n2v1-nmi-mce-send": (832_490, 2_577_870, 65),
    "n2v1-nmi2": (120_800, 339_972, 74),
    "n2v2-nmi2": (72_689, 201_178, 74),
    "n2v1-nmi2-send": (235_939, 736_402, 62),
    "n2v1-nmi-kill": (4_384_741, 15_746_992, 214),
    "n2v2-nmi-kill": (1_663_879, 5_375_736, 193),
    "n2v1-nmi-kill-send": (578_717, 2_225_178, 72),
    "n2v2-nmi-kill-send": (563_105, 1_848_318, 199),
    "n2v1-nmi-coordinator": (496_052, 1_491_012, 134),
    "n2v2-nmi-coordinator": (252_993, 702_192, 114),
    "n2v1-coordinator2": (281_477, 893_935, 105),
    "n2v2-coordinator2": (186_256, 511_630, 102),
    "n2v1-coordinator-kill": (5_470_779, 20_001_455, 186),
    "n2v2-coordinator-kill": (2_917_797, 8_572_051, 182),
    "n2i1-nmi-coordinator-kill": (675_213, 2_514_493, 105),
    "n2i1-nmi-coordinator-kill-send": (401_575, 1_536_931, 49),
    "n2v1-coordinator-hotplug": (1_010_447, 3_225_764, 113),
    "n2v2-coordinator-hotplug": (603_945, 1_842_692, 103),
    "n2v1-coordinator-hold": (204_510, 633_916, 106),
    "n2v1-coordinator-timers": (2_692_807, 9_575_118, 187),
    "n2v2-coordinator-timers": (1_401_369, 3_942_076, 183),
    "n2v1-coordinator-loss-send": (570_054, 2_579_118, 82),
    "n2v1-coordinator-loss-birth": (1_338_746, 4_636_519, 189),
    "n2v1-loss-hotplug": (146_462, 452_342, 83),
    "n2v2-loss-hotplug": (175_158, 521_896, 79),
    "n2v1-loss-kill": (760_655, 2_806_450, 203),
    "n2v2-loss-kill": (713_204, 2_125_608, 191),
    "n3v1-halts": (42_284, 138_687, 69),
    "n3v1-send": (267_168, 1_140_376, 59),
    "n3v1-coordinator": (2_967_192, 11_164_687, 142),
    "n3v2-coordinator": (1_525_000, 5_080_006, 142),
    "n3v1-loss": (1_386_250, 5_077_923, 82),
    "n3v1-nmi": (1_735_533, 6_268_308, 91),
    "n3v2-nmi": (941_805, 3_101_859, 91),
    "n4v1": (1_104_720, 4_411_016, 85),
    "n2v1-irq-nmi": (89_601, 255_942, 76),
    "n2v1-xapic-nmi-send": (173_445, 518_644, 83),
    "n2v1-irq-unplug-send": (121_438, 402_994, 54),
    "n2v1-irq-hotplug-send": (117_054, 393_222, 53),
    "n3v1-stun": (267_168, 1_140_376, 59),
    "n2v1-kill-flush": (177_515, 591_708, 182),
    "n2v1-kill-rendezvous": (219_913, 722_680, 185),
    "n2v1-nmi-mce-flush": (428_967, 1_174_892, 80),
    "n2v2-unplug-rendezvous": (184_735, 506_576, 178),
    "n2v1-coordinator-hotplug-rendezvous": (1_686_698, 5_278_492, 123),
    "n2v1-isolated-broadcast": (56_307, 137_947, 78),
    "n3i3-broadcast-timers": (71_666, 256_931, 40),
    "n3i3-broadcast2": (78_624, 326_576, 58),
    "n3i2-broadcast": (155_832, 588_428, 55),
    "n4i4-broadcast": (188_064, 948_944, 57),
    "n3i3-nmi-broadcast": (198_496, 808_320, 45),
    "n2i1-broadcast2-stop": (227_930, 600_628, 70),
    "n2i1-broadcast-kill": (312_766, 1_056_832, 116),
    "n2v1-broadcast-send": (319_143, 878_785, 69),
    "n2v1-broadcast-death": (452_633, 1_531_847, 108),
    "n2v1-broadcast-stop": (508_925, 1_230_829, 98),
    "n2v1-broadcast2": (1_149_712, 3_168_585, 107),
    "n2v1-nmi-broadcast": (3_030_198, 8_052_613, 90),
}


def _named(name: str, default: bool, size: tuple[int, int, int]) -> Named:
    return Named(name, build(name), default, *size)


MODELS: Final[dict[str, Named]] = {
    **{name: _named(name, True, size) for name, size in DEFAULT.items()},
    **{name: _named(name, False, size) for name, size in LARGE.items()},
}
