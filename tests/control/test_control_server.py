"""Idempotency, deadlines, holds, jobs, limits, roles: the control server over a machine that only remembers."""

from __future__ import annotations

import msgpack
import pytest

from asid import ops
from asid.core.record import events_schema
from asid.errors import Conflict, Internal, NoAnswer, NoSuchObject

NMI = {"target": "c0h1"}


# ---------------------------------------------------------------- answers

# The arguments that an operation cannot do without.
NEEDED = {
    "hist.get": {"what": "exit"},
    "vcpu.attach": {"target": "c0h1", "to": "c0h1"},
    "policy.set": {"name": "none"},
    "events.fetch": {"since": 5},
    "mark": {"text": "here"},
    "space.map": {"vm": "vm1", "objects": ["buses"]},
    "space.unmap": {"vm": "vm1", "objects": ["buses"]},
}


@pytest.mark.parametrize("name", [name for name, op in ops.OPS.items() if op.machine])
def test_every_operation_has_an_answer_in_its_declared_form(desk, name):
    """Of the machine that these tests stand on, too: an answer in another form is a fault of ours, for a client."""
    args = NEEDED.get(name) or ({"target": "c0h1"} if "target" in ops.OPS[name].args.__struct_fields__ else {})
    if name == "gate.release":
        desk.ask("gate.hold", args)
    answer = desk.ask(name, args)
    assert answer["ok"], answer
    assert set(ops.OPS[name].ret.__struct_fields__) == set(answer["ret"])


def test_hello_tells_every_limit_and_names_the_client(desk):
    ret = desk.ask("hello", {"name": "top@pts/3"})["ret"]
    assert ret["client"] == "top@pts/3"
    assert ret["limits"] == ops.LIMITS
    assert (ret["role"], ret["protocol"], ret["telemetry"]) == ("admin", 1, "ipc://tel")


def test_an_operation_done_at_once_is_answered_at_once(desk):
    answer = desk.ask("mark", {"text": "here"})
    assert answer == {"v": 1, "id": "r1", "ok": True, "ret": {"seq": 42}, "seq": 42, "t": desk.machine.now}


def test_ok_means_done_not_begun(desk):
    desk.machine.defer = True
    assert desk.ask("inject.nmi", NMI) is None
    ticket = desk.machine.begun[0][2]
    (reply,) = desk.control.complete(ticket, {"accepted": 1, "handled": 1}, 99)
    answer = msgpack.unpackb(reply.frames[-1])
    assert (answer["id"], answer["ok"], answer["seq"], answer["ret"]["handled"]) == ("r1", True, 99, 1)
    assert desk.control.counters()["under_way"] == 0
    assert desk.control.complete(ticket, {"accepted": 1}, 100) == [], "a ticket ends once"


def test_a_refusal_of_the_machine_travels_with_its_five_parts(desk):
    desk.machine.refusal = Conflict(
        "c0h1 is unplugged", where="c0h1", state="OFFLINE", allowed="plugged", hint="Plug it."
    )
    err = desk.ask("inject.nmi", NMI)["err"]
    assert (err["class"], err["applied"], err["hint"]) == ("Conflict", "no", "Plug it.")
    assert err["data"] == {"what": "c0h1 is unplugged", "where": "c0h1", "state": "OFFLINE", "allowed": "plugged"}


def test_no_answer_from_within_leaves_the_effect_unknown_and_is_no_fault(desk):
    desk.machine.defer = True
    desk.ask("inject.nmi", NMI, idem="once")
    (reply,) = desk.control.fail(desk.machine.begun[0][2], NoAnswer("the coordinator is silent", state="3 s"))
    err = msgpack.unpackb(reply.frames[-1])["err"]
    assert (err["class"], err["applied"]) == ("Expired", "unknown")
    assert desk.control.take_faults() == []
    assert desk.error(desk.ask("inject.nmi", NMI, idem="once")) == "Expired", "not begun a second time"
    assert len(desk.machine.begun) == 1


def test_a_fault_of_the_machine_is_internal_and_kept_for_the_log(desk):
    desk.machine.refusal = ZeroDivisionError("secret value 17")
    err = desk.ask("inject.nmi", NMI)["err"]
    assert (err["class"], err["applied"]) == ("Internal", "unknown")
    assert "17" not in err["msg"], "details go to the log, not to clients"
    (fault,) = desk.control.take_faults()
    assert "secret value 17" in fault


def test_a_return_of_a_wrong_form_is_our_fault(desk):
    desk.machine.ret = {"accepted": "many"}
    assert desk.error(desk.ask("inject.nmi", NMI)) == "Internal"
    desk.machine.ret = None
    assert desk.ask("inject.nmi", NMI)["ok"]


def test_events_that_do_not_fit_are_cut_and_say_where_to_go_on(desk):
    answer = desk.ask("events.fetch", {"since": 5, "limit": 1_000})
    events = answer["ret"]["events"]
    assert 0 < len(events) < 1_000
    assert answer["ret"]["next"] == events[-1]["seq"] + 1
    assert answer["ret"]["complete"] is False
    assert len(msgpack.packb(answer)) <= ops.REPLY_BYTES_MAX


def test_the_schema_tells_all_there_is_and_fits_into_an_answer(desk):
    answer = desk.ask("schema")
    schema = answer["ret"]["schema"]
    assert set(schema["ops"]) == set(ops.OPS) and set(schema["errors"]) and schema["limits"] == ops.LIMITS
    assert schema["events"] == events_schema()
    assert len(msgpack.packb(answer)) < ops.REPLY_BYTES_MAX / 2
    one = desk.ask("schema", {"op": "mark"})["ret"]["schema"]
    assert set(one["ops"]) == {"mark"} and "events" not in one


# ---------------------------------------------------------------- idempotency


def test_the_same_key_has_one_effect_and_one_answer(desk):
    first = desk.ask("inject.nmi", NMI, idem="once")
    again = desk.ask("inject.nmi", NMI, idem="once", client=b"bob")
    assert len(desk.machine.begun) == 1
    assert (again["ret"], again["seq"]) == (first["ret"], first["seq"])
    assert again["id"] != first["id"]


def test_the_same_arguments_in_another_order_are_the_same(desk):
    desk.ask("inject.exit", {"target": "c0h1", "count": 2}, idem="once")
    assert desk.ask("inject.exit", {"count": 2, "target": "c0h1", "wait": False}, idem="once")["ok"]
    assert len(desk.machine.begun) == 1


@pytest.mark.parametrize(
    ("op", "args"), [("inject.nmi", {"target": "c0"}), ("inject.mce", NMI), ("mark", {"text": "x"})]
)
def test_the_same_key_for_something_else_is_a_conflict(desk, op, args):
    desk.ask("inject.nmi", NMI, idem="once")
    assert desk.error(desk.ask(op, args, idem="once")) == "IdempotencyConflict"
    assert len(desk.machine.begun) == 1


def test_a_retry_of_what_is_under_way_waits_for_it(desk):
    desk.machine.defer = True
    assert desk.ask("inject.nmi", NMI, idem="once") is None
    assert desk.ask("inject.nmi", NMI, idem="once", client=b"bob") is None
    replies = desk.control.complete(desk.machine.begun[0][2], {"accepted": 1}, 50)
    assert sorted(reply.client for reply in replies) == [b"alice", b"bob"]
    assert len(desk.machine.begun) == 1


def test_what_certainly_did_not_happen_may_be_tried_again(desk):
    desk.machine.refusal = NoSuchObject("no vCPU there")
    assert desk.error(desk.ask("inject.nmi", NMI, idem="once")) == "NoSuchObject"
    desk.machine.refusal = None
    assert desk.ask("inject.nmi", NMI, idem="once")["ok"]


def test_what_perhaps_happened_is_not_tried_again(desk):
    desk.machine.refusal = Internal("half done")
    assert desk.error(desk.ask("inject.nmi", NMI, idem="once")) == "Internal"
    desk.machine.refusal = None
    assert desk.error(desk.ask("inject.nmi", NMI, idem="once")) == "Internal"
    assert desk.machine.begun == []


@pytest.mark.slow
def test_keys_are_bounded_and_the_oldest_goes_first(desk):
    for n in range(ops.IDEM_KEYS_MAX + 10):
        desk.machine.now += 1_000_000
        assert desk.ask("mark", {"text": "m"}, idem=f"key{n}")["ok"]
    assert desk.control.counters()["idem_keys"] == ops.IDEM_KEYS_MAX
    begun = len(desk.machine.begun)
    desk.ask("mark", {"text": "m"}, idem=f"key{ops.IDEM_KEYS_MAX + 9}")
    assert len(desk.machine.begun) == begun


# ---------------------------------------------------------------- deadlines


def test_a_deadline_that_passes_leaves_the_effect_unknown_and_a_retry_learns_it(desk):
    desk.machine.defer = True
    desk.ask("inject.nmi", NMI, idem="once", deadline_ms=1_000)
    assert desk.pass_s(0.999) == []
    (late,) = desk.pass_s(0.002)
    assert (late["err"]["class"], late["err"]["applied"]) == ("Expired", "unknown")
    assert desk.control.complete(desk.machine.begun[0][2], {"accepted": 1}, 77) == []
    assert desk.ask("inject.nmi", NMI, idem="once")["seq"] == 77
    assert len(desk.machine.begun) == 1


def test_time_in_a_queue_counts_and_a_foreign_clock_does_not(desk):
    now = desk.machine.now
    assert desk.error(desk.ask("mark", {"text": "x"}, t=now - 2_000_000_000, deadline_ms=1_000)) == "Expired"
    assert desk.ask("mark", {"text": "x"}, t=now + 10**15, deadline_ms=1_000)["ok"]


# ---------------------------------------------------------------- holds


def test_a_hold_keeps_others_off_its_core_and_names_the_holder(desk):
    desk.ask("hello", {"name": "top@pts/3"})
    assert desk.ask("gate.hold", {"target": "c0"}, urgent=True)["ret"]["cores"] == [0]
    desk.pass_s(4.1)
    err = desk.ask("inject.nmi", NMI, client=b"bob")["err"]
    assert err["class"] == "Busy"
    assert "gate of c0 is held by client 'top@pts/3' since 4.1 s" in err["msg"]
    assert err["hint"] == "asid gate release c0 --force"
    assert err["data"]["holder"] == "top@pts/3"
    assert desk.ask("inject.nmi", NMI)["ok"], "the holder itself may"
    assert desk.ask("inject.nmi", {"target": "c1"}, client=b"bob")["ok"], "another core is free"
    assert desk.error(desk.ask("inject.nmi", {"target": "c*"}, client=b"bob")) == "Busy"
    assert desk.error(desk.ask("policy.set", {"name": "none"}, client=b"bob")) == "Busy"
    assert desk.ask("mark", {"text": "x"}, client=b"bob")["ok"]
    gates = desk.ask("gate.get")["ret"]["gates"]
    assert [gate["holder"] for gate in gates] == ["top@pts/3", ""]


def test_only_its_holder_releases_or_somebody_with_force(desk):
    assert desk.error(desk.ask("gate.release", {"target": "c0"})) == "Conflict"
    desk.ask("gate.hold", {"target": "c0"})
    assert desk.error(desk.ask("gate.release", {"target": "c0"}, client=b"bob")) == "Busy"
    assert desk.error(desk.ask("gate.hold", {"target": "c0"}, client=b"bob")) == "Busy"
    assert desk.ask("gate.release", {"target": "c0", "force": True}, client=b"bob")["ok"]
    assert desk.ask("gate.hold", {"target": "c0"}, client=b"bob")["ok"]


def test_the_same_name_from_another_connection_is_the_same_holder(desk):
    for client in (b"one", b"two"):
        desk.ask("hello", {"name": "asid@pts/3"}, client=client)
    desk.ask("gate.hold", {"target": "c0"}, client=b"one")
    desk.control.gone(b"one")
    assert desk.ask("gate.release", {"target": "c0"}, client=b"two")["ok"]


def test_the_hold_of_a_vanished_client_ends_by_itself(desk):
    desk.ask("gate.hold", {"target": "c0", "ttl_ms": 2_000})
    desk.pass_s(1)
    desk.ask("gate.hold", {"target": "c0", "ttl_ms": 2_000})
    desk.pass_s(1.5)
    assert desk.control.holds(), "renewed"
    desk.pass_s(1)
    assert desk.control.holds() == {}
    op, args, _, client = desk.machine.begun[-1]
    assert (op, args.target, args.force, client) == ("gate.release", "c0", True, "asid")


def test_a_hold_locks_before_the_gate_has_closed_and_until_it_may_open(desk):
    desk.machine.defer = True
    assert desk.ask("gate.hold", {"target": "c0"}) is None
    assert desk.error(desk.ask("gate.hold", {"target": "c0"}, client=b"bob")) == "Busy"
    desk.control.complete(desk.machine.begun[-1][2], {"cores": [0]}, 50)
    assert desk.ask("gate.release", {"target": "c0"}) is None
    assert desk.error(desk.ask("gate.hold", {"target": "c0"}, client=b"bob")) == "Busy"
    desk.control.complete(desk.machine.begun[-1][2], {"cores": [0]}, 51)
    assert desk.control.holds() == {}


def test_a_hold_that_fails_locks_nothing_and_a_release_that_fails_is_tried_again(desk):
    desk.machine.refusal = Conflict("core failed")
    desk.ask("gate.hold", {"target": "c0"})
    assert desk.control.holds() == {}
    desk.machine.refusal = None
    desk.ask("gate.hold", {"target": "c0", "ttl_ms": 1_000})
    desk.machine.refusal = Conflict("not now")
    desk.pass_s(2)
    assert desk.control.holds()
    desk.machine.refusal = None
    desk.pass_s(0.05)
    assert desk.control.holds(), "not at once"
    desk.pass_s(0.1)
    assert desk.control.holds() == {}


# ---------------------------------------------------------------- jobs


def start_job(desk):
    desk.machine.defer = True
    answer = desk.ask("inject.nmi", {"target": "c0h1", "count": 500, "rate_hz": 100}, idem="once")
    assert answer["ok"] and answer["ret"]["accepted"] == 0
    return answer["ret"]["job"], desk.machine.begun[-1][2]


def test_long_work_is_a_job_with_progress_and_a_result(desk):
    job, ticket = start_job(desk)
    desk.control.progress(ticket, 120, 500)
    ret = desk.ask("job.get", {"job": job})["ret"]
    assert (ret["state"], ret["done"], ret["total"], ret["op"]) == ("running", 120, 500, "inject.nmi")
    assert desk.ask("job.wait", {"job": job}) is None
    (reply,) = desk.control.complete(ticket, {"accepted": 500, "handled": 480, "merged": 20}, 900)
    ret = msgpack.unpackb(reply.frames[-1])["ret"]
    assert (ret["state"], ret["done"], ret["seq"], ret["result"]["merged"]) == ("done", 500, 900, 20)
    assert desk.ask("job.wait", {"job": job})["ret"]["state"] == "done"
    again = desk.ask("inject.nmi", {"target": "c0h1", "count": 500, "rate_hz": 100}, idem="once")
    assert again["ret"]["job"] == job and len(desk.machine.begun) == 1


def test_readers_of_the_events_are_told_of_a_job_at_its_begin_now_and_then_and_at_its_end(desk):
    job, ticket = start_job(desk)
    total = desk.ask("job.get", {"job": job})["ret"]["total"]
    for done in range(30):  # one in 10 ms
        desk.pass_s(0.01)
        desk.control.progress(ticket, done, total)
    desk.control.complete(ticket, {"accepted": total}, 99)
    assert [(name, op, state) for name, op, state, _, _ in desk.machine.jobs] == [
        (job, "inject.nmi", "running"), (job, "inject.nmi", "running"), (job, "inject.nmi", "running"),
        (job, "inject.nmi", "running"), (job, "inject.nmi", "done"),
    ]  # fmt: skip
    assert [done for _, _, _, done, _ in desk.machine.jobs] == [0, 9, 19, 29, total]


def test_a_job_that_was_refused_is_told_to_nobody_and_the_end_of_a_stop_is_that_of_the_run(desk):
    desk.machine.refusal = NoSuchObject("gone")
    desk.ask("inject.exit", {"target": "c0", "count": 5_000})
    assert desk.machine.jobs == []
    desk.machine.refusal, desk.machine.defer = None, True
    desk.ask("stop")
    desk.control.complete(desk.machine.begun[-1][2], {}, 99)
    assert [(op, state) for _, op, state, _, _ in desk.machine.jobs] == [("stop", "running")]


def test_waiting_for_a_job_ends_with_the_job_as_it_is(desk):
    job, _ = start_job(desk)
    assert desk.ask("job.wait", {"job": job, "timeout_ms": 200}) is None
    (answer,) = desk.pass_s(0.25)
    assert answer["ok"] and answer["ret"]["state"] == "running"


def test_a_job_is_cancelled_once_and_answered_when_it_has_ended(desk):
    job, ticket = start_job(desk)
    assert desk.ask("job.cancel", {"job": job}, urgent=True) is None
    assert desk.ask("job.cancel", {"job": job}, urgent=True) is None
    assert desk.machine.cancelled == [ticket]
    desk.control.progress(ticket, 7, 500)
    replies = desk.control.complete(ticket, {"accepted": 7, "handled": 7}, 70)
    assert len(replies) == 2
    ret = msgpack.unpackb(replies[0].frames[-1])["ret"]
    assert (ret["state"], ret["result"]["accepted"]) == ("cancelled", 7)


def test_a_cancel_that_came_after_the_last_one_cancelled_nothing(desk):
    job, ticket = start_job(desk)
    desk.control.progress(ticket, 500, 500)
    assert desk.ask("job.cancel", {"job": job}, urgent=True) is None
    (reply,) = desk.control.complete(ticket, {"accepted": 500, "handled": 500}, 70)
    ret = msgpack.unpackb(reply.frames[-1])["ret"]
    assert (ret["state"], ret["done"], ret["total"]) == ("done", 500, 500)


def test_a_job_that_the_end_of_the_machine_cut_short_is_not_done(desk):
    job, ticket = start_job(desk)
    desk.control.complete(ticket, {"accepted": 7, "handled": 7}, 70)
    ret = desk.ask("job.get", {"job": job})["ret"]
    assert (ret["state"], ret["done"], ret["total"]) == ("cancelled", 7, 500)


def test_the_total_of_a_job_is_of_all_its_places(desk):
    desk.machine.defer = True
    job = desk.ask("inject.nmi", {"target": "c*", "count": 500, "rate_hz": 100})["ret"]["job"]
    assert desk.ask("job.get", {"job": job})["ret"]["total"] == 2_000


def test_a_job_that_fails_says_why(desk):
    job, ticket = start_job(desk)
    desk.control.fail(ticket, Conflict("c0h1 was unplugged"))
    ret = desk.ask("job.get", {"job": job})["ret"]
    assert (ret["state"], ret["error"]["class"]) == ("failed", "Conflict")


def test_a_job_refused_leaves_nothing(desk):
    desk.machine.refusal = Conflict("no")
    assert desk.error(desk.ask("inject.nmi", {"target": "c0h1", "count": 5_000})) == "Conflict"
    counters = desk.control.counters()
    assert (counters["under_way"], counters["jobs_running"], counters["idem_keys"]) == (0, 0, 0)


def test_jobs_are_bounded(desk):
    desk.machine.defer = True
    for _ in range(ops.JOBS_MAX):
        assert desk.ask("inject.nmi", {"target": "c0h1", "count": 5_000})["ok"]
    answer = desk.ask("inject.nmi", {"target": "c0h1", "count": 5_000})
    assert desk.error(answer) == "LimitExceeded" and answer["err"]["data"]["limit"] == "jobs"
    desk.control.complete(desk.machine.begun[0][2], {"accepted": 5_000}, 50)
    assert desk.ask("inject.nmi", {"target": "c0h1", "count": 5_000})["ok"]
    assert desk.error(desk.ask("job.get", {"job": "j1"})) == "NoSuchObject"


# ---------------------------------------------------------------- limits, roles, end


def test_requests_in_flight_are_bounded_for_each_client(desk):
    desk.machine.defer = True
    for _ in range(ops.IN_FLIGHT_MAX):
        assert desk.ask("inject.nmi", NMI) is None
    answer = desk.ask("inject.nmi", NMI)
    assert desk.error(answer) == "LimitExceeded" and answer["err"]["data"]["limit"] == "in_flight"
    assert len(desk.machine.begun) == ops.IN_FLIGHT_MAX
    assert desk.ask("ping")["ok"], "what needs no waiting still works"
    assert desk.ask("inject.nmi", NMI, client=b"bob") is None
    desk.control.complete(desk.machine.begun[0][2], {"accepted": 1}, 50)
    assert desk.ask("inject.nmi", NMI) is None


def test_a_flood_is_refused_then_dropped_and_others_are_served(desk):
    results = [desk.raw([b"ASID1", msgpack.packb({"v": 1, "id": "x", "op": "ping"})]) for _ in range(6_000)]
    served = sum(1 for found in results if found and found[0]["ok"])
    refused = [found[0]["err"] for found in results if found and not found[0]["ok"]]
    assert served == ops.BURST_MAX
    assert {err["data"]["limit"] for err in refused} == {"rate_hz"}
    assert desk.control.counters()["dropped"] == 6_000 - served - len(refused) > 0
    assert desk.ask("ping", client=b"bob")["ok"]
    desk.pass_s(0.1)
    assert desk.ask("ping")["ok"], "a client that calms down is served again"


def test_clients_are_bounded_and_those_waiting_are_kept(desk):
    desk.machine.defer = True
    desk.ask("inject.nmi", NMI)
    for n in range(ops.CLIENTS_MAX + 50):
        desk.ask("ping", client=b"c%d" % n)
    assert desk.control.counters()["clients"] == ops.CLIENTS_MAX
    assert len(desk.control.complete(desk.machine.begun[0][2], {"accepted": 1}, 50)) == 1


def test_a_client_that_is_gone_gets_nothing_and_keeps_nothing(desk):
    desk.machine.defer = True
    desk.ask("inject.nmi", NMI)
    desk.control.gone(b"alice")
    assert desk.control.counters()["waiting"] == 0
    assert desk.pass_s(10) == []
    assert desk.control.complete(desk.machine.begun[0][2], {"accepted": 1}, 50) == []


def test_roles_only_go_down(desk, observer):
    assert desk.ask("hello", {"role": "observer"})["ret"]["role"] == "observer"
    assert desk.error(desk.ask("inject.nmi", NMI)) == "Forbidden"
    assert desk.ask("hello", {"role": "admin"})["ret"]["role"] == "observer"
    assert desk.ask("ht.list")["ok"]
    assert observer.error(observer.ask("stop")) == "Forbidden"
    assert observer.machine.begun == []


def test_an_operator_may_inject_and_not_stop(desk):
    desk.ask("hello", {"role": "operator"})
    assert desk.ask("inject.nmi", NMI)["ok"]
    assert desk.error(desk.ask("policy.set", {"name": "none"})) == "Forbidden"


@pytest.mark.parametrize("op", sorted(ops.OPS))
def test_the_urgent_socket_takes_urgent_operations_only(desk, op):
    answer = desk.ask(op, {}, urgent=True)
    assert answer is not None
    unknown = not answer["ok"] and answer["err"]["class"] == "UnknownOp"
    assert unknown is not ops.OPS[op].urgent


def test_while_draining_only_what_ends_things_is_taken(desk):
    desk.ask("gate.hold", {"target": "c0"})
    desk.ask("inject.nmi", NMI, idem="before")
    desk.control.begin_draining()
    assert desk.error(desk.ask("inject.nmi", NMI)) == "ShuttingDown"
    assert desk.ask("inject.nmi", NMI, idem="before")["ok"], "its effect is there already"
    assert desk.ask("gate.release", {"target": "c0"})["ok"]
    assert desk.ask("ht.list")["ok"]
    assert desk.ask("hello")["ret"]["draining"] is True
    assert desk.ask("stop")["ok"]


def test_stop_is_a_job(desk):
    desk.machine.defer = True
    answer = desk.ask("stop", {"reason": "test"}, urgent=True)
    assert answer["ret"]["job"] == "j1"
    desk.control.progress(desk.machine.begun[0][2], 1, 4)
    assert desk.ask("job.get", {"job": "j1"})["ret"]["done"] == 1


def test_the_machine_must_not_complete_from_within_begin(desk):
    desk.machine.begin = lambda op, args, ticket, client: desk.control.complete(ticket, {"accepted": 1}, 1)
    assert desk.error(desk.ask("inject.nmi", NMI)) == "Internal"
    assert desk.control.counters()["under_way"] == 0
