"""The catalogue of records: who writes each, what is in it, what it says. `asid.core.record` gives it meaning.

A field is `name:kind`; `name?:kind` is optional, and a kind with `|` lists the allowed words.
"""

from __future__ import annotations

MODES = ("OFFLINE", "PARKED", "HOST", "ISOLATED", "GUEST")

LEVELS = ("PTE", "PMD", "PUD", "P4D", "PGD")  # of page-table entries

# How a hyperthread came to be in HOST. "grant": a leave that the gate granted after every lease was handed back (kicks
# `ack` and `rendezvous`); "send", "stun": a leave that waits for nobody; "bare": one that kicks nobody; the others did
# not ask.
VIAS = ("grant", "send", "stun", "bare", "nmi", "mce")

_MODE = "|".join(MODES)
CATALOGUE: tuple[tuple[str, str, str, str], ...] = (
    # type, writer, data, meaning
    (
        "run.begin",
        "daemon",
        "name:str policy:str kick:str seed:int cores:int smt:int engine:str vcpus?:int like?:str ways?:str "
        "mce_timeout_ns?:int flushes?:bool",
        "the first record of a run; kick: the one in force, `bare` where nobody is kicked; vcpus: how many of its "
        "hyperthreads have a vCPU to run; like: of a policy of the user, the one whose promises it makes, and ways: "
        "how its leaves reach HOST, as in grant,send; mce_timeout_ns: how long a #MC handler waits for others; "
        "flushes: false when it plays schedules of a machine that leaves its buffers alone, whatever the policy",
    ),
    ("run.end", "daemon", "reason:str", "the last record of a run that ended in order"),
    ("spawn", "daemon", "what:ht|coordinator pid:int inc:int", "a process was started; it begins PARKED"),
    (
        "death",
        "daemon",
        "what:ht|coordinator pid:int inc:int status:int",
        "a process is confirmed dead; status is the exit code, or minus the signal; 255 when nobody could tell it",
    ),
    (
        "inject",
        "daemon",
        "id:int what:str target:str reason?:str n?:int vector?:int broadcast?:int",
        "an injection (of n exits) was accepted; vector is that of an irq which a client sent, broadcast the number of "
        "a machine check of all siblings, of which this is one part",
    ),
    (
        "inject.done",
        "daemon",
        "id:int result:handled|merged|lost|refused why?:str",
        "what became of an injection; exactly one for each id",
    ),
    (
        "policy",
        "daemon",
        "old:str new:str kick:str like?:str ways?:str",
        "the policy changed: stamped while every gate is held and nobody has a lease, before any gate opens under it",
    ),
    (
        "space.change",
        "daemon",
        f"vm:int object:str generation:int mapped:bool level?:{'|'.join(LEVELS)} split?:bool",
        "an object is mapped for this VM from here on, or is no longer: whoever is born later has it so at its birth, "
        "the others tell when they do. level and split as at space.map, left out when it is not mapped; generation: "
        "number of the change, of all VMs together",
    ),
    ("mark", "daemon", "text:str", "a client's remark"),
    (
        "job",
        "daemon",
        "job:str op:str state:running|done|failed|cancelled done:int total:int",
        "work that outlives its request has begun, goes on (told ten times a second at most) or is over; a stop ends "
        "with run.end",
    ),
    (
        "loss",
        "daemon",
        "what:str n:int",
        "n items lost; `telemetry` costs the journal nothing, any other word makes it incomplete",
    ),
    (
        "kvm.recording",
        "daemon",
        "state:on|off|over why?:str lost?:int bytes?:int cut?:str",
        "of runs with real guests: KVM's own events are recorded from tracefs, are not, or were until now. why: not, "
        "or not all of them; lost: how many the kernel dropped; bytes: of their text; cut: why the text has not all",
    ),
    (
        "kvm.events",
        "daemon",
        "of:str pid:int event:str reason:str n:int ended?:int kept?:int sum_ns?:int",
        "what KVM itself told of the thread of this hyperthread (c0h1; empty: of none) since the last such record: n "
        "events of this name and reason. Of kvm_exit: how many have ended since, with a kvm_entry; how many of these "
        "KVM kept to itself, without a kvm_userspace_exit; and how long they took",
    ),
    ("warn", "daemon", "text:str", "something to look at before the numbers are trusted"),
    (
        "ht.mode",
        "hyperthread",
        f"inc:int old:{_MODE} new:{_MODE} vm:int via?:{'|'.join(VIAS)}",
        "a change of mode; fast exits inside one lease are not recorded one by one. via only when new is HOST",
    ),
    (
        "exit",
        "hyperthread",
        "reason:str isa:vmx|svm full:bool n:int sum_ns:int min_ns:int max_ns:int hist:hist halt?:slept|polled",
        "n fast exits of one reason, or one full exit (n = 1). halt of those that halt the vCPU: slept, it was "
        "scheduled out; polled, its wake-up was waited for by the handler, and that is part of its time",
    ),
    (
        "leave",
        "hyperthread",
        "kind:ack|send|bare|rendezvous|stun reason:str wait_ns:int object?:str",
        "the full address space was reached; wait_ns from wanting it to having it; object: what the exit's handling "
        "missed first in the isolated one, empty when it would have left whatever is mapped",
    ),
    (
        "fault",
        "hyperthread",
        "vm:int ip:int address:int error:int at:str on:str object:str reason:str ending:str trace:str",
        "an isolation fault: the handler of an exit of this reason missed an object of its VM's isolated space; told "
        "once a place, ending and life of the hyperthread. ip, address: of the instruction and of what it missed, at "
        "and on the same as %pS; error: the processor's code. ending: left, it is followed by the leave; forced, its "
        "own handler faulted and the switch was forced; switch forced, it hit the switch itself; stopped, nothing "
        "could be run and the hyperthread is lost. trace: the callers, nearest first, with ; between; empty without "
        "page_fault_stack",
    ),
    ("fault.full", "hyperthread", "places:int", "so many places have faulted that no further one is told"),
    (
        "space.map",
        "hyperthread",
        f"vm:int object:str generation:int level?:{'|'.join(LEVELS)} split?:bool",
        "from here on this hyperthread decides with the object mapped for the VM, in entries of this level (left out: "
        "PTE), of larger ones only the pages asked for (split; left out: true); generation: number of the change, of "
        "all VMs together. Exits told before it were decided without",
    ),
    (
        "space.unmap",
        "hyperthread",
        "vm:int object:str generation:int",
        "from here on this hyperthread decides with the object not mapped for the VM, as at space.map",
    ),
    ("gate.wait", "hyperthread", "wait_ns:int vm:int", "an ask was admitted; wait_ns since it was made"),
    (
        "intr",
        "hyperthread",
        f"what:nmi|mce id:int depth:int merged:int host_ns:int from:{_MODE} severity?:corrected|recoverable|fatal "
        "broadcast?:int role?:monarch|joined|alone order?:int wait_ns?:int",
        "end of a handler; depth 1 is the outermost, merged counts the NMIs that became this one. Of a #MC severity "
        "(left out: recoverable), and of one of all siblings also its number, role, order and wait in the rendezvous",
    ),
    (
        "mce.timeout",
        "hyperthread",
        "broadcast:int missing:str waited_ns:int",
        "a #MC handler gave up waiting for these siblings (h1,h3); told after the handler, and they are fenced",
    ),
    (
        "irq",
        "hyperthread",
        f"id:int from:{_MODE} full:bool took_ns:int",
        "an external interrupt that did not hit the guest was handled; full: it made a leave first",
    ),
    (
        "kick.seen",
        "hyperthread",
        f"number:int was:{_MODE} avoidable:bool insns?:int",
        "a lease was handed back; insns retired since the pending bit was visible, left out when not measured",
    ),
    (
        "ipi",
        "hyperthread",
        "to:int why:nmi|mce|send|stun|bare|ack|rendezvous",
        "the pending bit of sibling `to` was set",
    ),
    ("held", "hyperthread", "by:int held_ns:int", "the entry check found a sibling's flag or depth set, and waited"),
    (
        "standstill",
        "hyperthread",
        f"via:{'|'.join(VIAS)} visits:int moved:int turns:int",
        "of so many visits to HOST, by how they came about, the ones in which the guest of a sibling moved on, by the "
        "count that a real guest keeps in its own memory, and by how many turns of its loop; of machines with real "
        "guests, for all visits since the last such record",
    ),
    (
        "flush",
        "hyperthread",
        "what:data|control|all cost_ns:int",
        "buffers were cleared before a guest entry; everything loaded on this core before is gone",
    ),
    ("gate.ask", "coordinator", "vm:int req:int", "a hyperthread wants to enter guest"),
    (
        "gate.leave",
        "coordinator",
        f"req:int reason:str mode?:{_MODE}",
        "a hyperthread wants the full address space; PARKED when it holds no lease and will use none that is under way",
    ),
    ("gate.admit", "coordinator", "vm:int req:int inc:int", "a lease was granted"),
    ("gate.kick", "coordinator", "number:int for_ht:int", "a lease was called back, for the leave of for_ht"),
    ("gate.answer", "coordinator", f"number:int was:{_MODE}", "a kick was answered: out of guest, lease handed back"),
    ("gate.grant", "coordinator", "req:int", "every other lease is back: the leaver may switch"),
    ("gate.done", "coordinator", "", "a hyperthread is back from HOST"),
    ("gate.entered", "coordinator", "", "the first guest instruction of a lease has run"),
    ("gate.idle", "coordinator", "", "a hyperthread has no vCPU to run; its ask is withdrawn"),
    ("gate.bye", "coordinator", "", "a hyperthread goes away in order"),
    ("gate.close", "coordinator", "", "the gate closed"),
    ("gate.open", "coordinator", "", "the gate opened"),
    (
        "gate.turn",
        "coordinator",
        "vm:int room:int",
        "the core goes to this VM; room is whose turn it is: the VM's, with nosmt a hyperthread's plus 1, with none 1",
    ),
    ("gate.fence", "coordinator", "inc:int", "a hyperthread did not answer: it is to be killed"),
    ("gate.dead", "coordinator", "inc:int", "the gate was told of a confirmed death"),
    ("gate.hold", "coordinator", "by:str", "a client holds the gate closed"),
    ("gate.release", "coordinator", "by:str", "the hold ended"),
    ("gate.resync", "coordinator", "inc:int", "a hyperthread told its whole state to a new coordinator"),
    ("gate.ready", "coordinator", f"inc:int mode:{_MODE}", "a hyperthread reported for the first time"),
    ("gate.drop", "coordinator", "why:str", "a message was dropped: late, foreign or of an older incarnation"),
)
