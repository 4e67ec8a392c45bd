"""The client over real sockets, against a control server in a thread: deadlines, stray answers, gaps, a dead daemon."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time

import msgpack
import pytest
import zmq

from asid import client as client_
from asid.core.record import Record
from asid.errors import Busy, ConfigError, NoAnswer, NoSuchObject, NotRunning, PermissionRefused
from asid.live import instance as instances_
from asid.live import sockets
from asid.report.stat import StatFold

NMI = {"target": "c0h1"}
PATIENCE_S = 10.0  # of the client; a call with a deadline of its own ends long before


@pytest.fixture
def client(server):
    with client_.connect("t", name="tester", timeout_s=PATIENCE_S) as one:
        yield one


def wide_stats() -> StatFold:
    """64 cores of two hyperthreads, each with eleven reasons and broad histograms."""
    fold = StatFold()
    for core, ht, reason in itertools.product(range(64), range(2), range(11)):
        hist = [[bucket, 1_000] for bucket in range(20, 120)]
        data = {"reason": f"REASON_{reason}", "isa": "vmx", "full": False, "n": 100_000, "sum_ns": 10**9}
        fold.add(Record(1, 1, 1, "exit", core, ht, 1, 0, {**data, "min_ns": 1, "max_ns": 10**6, "hist": hist}))
    return fold


def test_a_table_that_is_too_long_for_one_answer_comes_by_pages(server, client):
    fold = server.desk.machine.stats = wide_stats()
    first = client.call("stats.get", {"limit": 1_000}).ret
    assert 0 < len(first["rows"]) < 1_000 and first["next"], "as many as there is room for"
    found = client.stats()
    assert found == {"rows": fold.rows(), "totals": fold.totals()}
    assert client.call("stats.get", {"target": "c0"}).ret["next"] == "", "what fits is told at once"


def test_calls_and_errors(client, server):
    assert client.ping()["seq"] == 41
    assert client.inject_nmi("c0h1").ret["accepted"] == 1
    with pytest.raises(NoSuchObject, match="no c7"):
        client.inject_nmi("c7")
    with client_.connect("t", name="other") as other:
        client.gate_hold("c0")
        with pytest.raises(Busy, match="held by client 'tester'") as caught:
            other.inject_nmi("c0h1")
    assert caught.value.data["holder"] == "tester"
    assert caught.value.hint == "asid gate release c0 --force"
    client.gate_release("c0")


def test_no_answer_comes_at_the_deadline_with_the_key_to_retry(client, server):
    server.silent = True
    start = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        client.inject_nmi("c0h1", timeout_s=0.1, idem="my-key")
    assert 0.09 < time.monotonic() - start < PATIENCE_S / 2, "at its own deadline, not the client's"
    assert caught.value.data["idem"] == "my-key"
    assert caught.value.applied == "unknown"
    server.silent = False
    assert client.inject_nmi("c0h1", idem="my-key")["accepted"] == 1


def test_a_busy_daemon_may_be_late_with_the_news_of_a_job(client, monkeypatch):
    asked = []

    def call(op, args, *, timeout_s):
        asked.append((op, args, timeout_s))
        return client_.Reply({"state": "running" if len(asked) < 3 else "done"}, 7, 1)

    monkeypatch.setattr(client, "call", call)
    assert client.wait_job("j1", timeout_s=600).seq == 7
    assert [(op, args) for op, args, _ in asked] == [("job.wait", {"job": "j1", "timeout_ms": 1_000})] * 3
    assert all(500 < timeout_s <= 601 for *_, timeout_s in asked), "only the end of the whole wait is too late"


def test_stray_answers_are_dropped_and_extend_no_deadline(client, server):
    other = msgpack.packb({"v": 1, "id": "not-mine", "ok": True, "ret": {}, "seq": 1, "t": 1})
    server.strays = [[b"ASID1", other], [b"junk"], [b"ASID1", b"\xc1"], [b"ASID1", b"\x01"]]
    assert client.ping()["seq"] == 41
    server.desk.machine.defer = True
    with pytest.raises(NoAnswer):
        client.inject_nmi("c0h1", timeout_s=0.1)


def test_events_from_the_subscription_on(client, server):
    server.do(lambda s: s.event("exit", 50, 1))
    with client.events() as events:
        server.do(lambda s: (s.event("exit", 51, 2), s.event("ht.mode", 52, 1)))
        events.wait_seq(52)
        assert [event.seq for event in events.drain()] == [51, 52]
        assert events.next(0.01) is None


def test_a_filter_by_type_and_place(client, server):
    with client.events("ht", "c0h0") as events:
        server.do(lambda s: [s.event(kind, 60 + n, 1) for n, kind in enumerate(("exit", "ht.mode", "htx"))])
        events.wait_seq(62)
        assert [event.type for event in events.drain()] == ["ht.mode"]


def test_a_gap_is_seen_and_fetched_from_the_journal(client, server):
    records = {n: {"seq": n, "tseq": n - 49, "topic": "e.c000.h0.exit.", "type": "exit"} for n in range(50, 60)}

    def query(op, args):
        found = [records[n] for n in range(args.since, min(args.until, 59) + 1)]
        return {"events": found, "next": 60, "complete": True, "head": 59}

    server.desk.machine.query = query
    with client.events("exit") as events:
        for n in range(50, 56):
            server.do(lambda s, n=n: s.event("exit", n, n - 49, lose=n in (52, 53)))
        events.wait_seq(55)
        assert [event.seq for event in events.drain()] == [50, 51, 52, 53, 54, 55]
    assert (events.gaps, events.filled, events.lost) == (1, 2, 0)


def test_a_gap_that_cannot_be_fetched_is_said(client, server):
    server.desk.machine.refusal = NoSuchObject("not in the journal")
    with client.events("exit") as events:
        server.do(lambda s: [s.event("exit", n, n - 49, lose=n == 51) for n in (50, 51, 52)])
        events.wait_seq(52)
        assert [event.type for event in events.drain()] == ["exit", "gap", "exit"]
    assert events.lost == 1


def test_a_sync_whose_answer_is_dropped_is_asked_for_again(client, server):
    """A reader that was away has a full queue in front of it: what is published then does not reach it."""
    with client.events("exit") as events:
        server.do(lambda s: (setattr(s, "syncs_lost", 2), s.event("exit", 50, 1), s.event("ht.mode", 51, 1, lose=True)))
        events.wait_seq(51)
        assert events.next(0.01).seq == 50
    assert server.syncs_lost == 0


def test_what_was_dropped_last_is_fetched_too(client, server):
    """No later event of its topic shows a jump; but whoever has so much to read may have been too slow."""

    def query(op, args):
        found = [{"seq": n, "tseq": n - 49, "topic": "e.c000.h0.exit.", "type": "exit"} for n in (1_550, 1_551)]
        return {"events": [e for e in found if args.since <= e["seq"] <= args.until], "next": 1_552,
                "complete": True, "head": 1_551}  # fmt: skip

    server.desk.machine.query = query
    with client.events("exit") as events:
        server.do(lambda s: [s.event("exit", n, n - 49, lose=n >= 1_550) for n in range(50, 1_552)])
        events.wait_seq(1_551, timeout_s=20)
        assert [event.seq for event in events.drain()] == list(range(50, 1_552))
    assert (events.filled, events.lost) == (2, 0)


def test_a_reader_of_little_asks_the_journal_for_nothing(client, server):
    server.desk.machine.refusal = NoSuchObject("not asked for")
    with client.events("c0h1") as events:
        server.do(lambda s: [s.event("exit", n, n - 49) for n in range(50, 60)])
        events.wait_seq(59)
        assert (events.drain(), events.filled, events.lost) == ([], 0, 0)


def test_a_deadline_holds_while_messages_keep_coming(client, server):
    with client.events("exit") as events:
        events._take = lambda: True
        with pytest.raises(NoAnswer, match="telemetry socket"):
            events.wait_seq(10**6, timeout_s=0.3)
        del events._take
        assert not events._asked and set(events._syncs) <= {b"y.welcome."}


def test_events_since_a_record_begin_in_the_journal(client, server):
    server.desk.machine.query = lambda op, args: {
        "events": [{"seq": n, "tseq": n, "topic": "e.c000.h0.exit.", "type": "exit"} for n in range(args.since, 42)],
        "next": 42, "complete": True, "head": 41,
    }  # fmt: skip
    with client.events(since=38) as events:
        assert [event.seq for event in events.drain()] == [38, 39, 40, 41]


def test_bye_ends_a_subscription(client, server):
    with client.events() as events:
        server.do(lambda s: (s.publish("y.bye.", seq=41), s.publish("y.bye.", seq=41, reason="stop")))
        assert list(events) == []
        assert events.ended


def test_a_client_that_never_reads_does_not_stop_the_server(client, server):
    context = sockets.new_context()
    mute = sockets.client_dealer(context, client.endpoints.ctl, b"mute")
    body = msgpack.packb({"v": 1, "id": "x", "op": "schema"})
    for _ in range(500):
        mute.poll(100, zmq.POLLOUT)
        sockets.send_nonblocking(mute, [b"ASID1", body])
    assert client.ping()["seq"] == 41
    mute.close()
    context.term()


def test_an_oversized_frame_cuts_its_sender_only(client, server):
    context = sockets.new_context()
    loud = sockets.client_dealer(context, client.endpoints.ctl, b"loud")
    loud.poll(500, zmq.POLLOUT)
    sockets.send_nonblocking(loud, [b"ASID1", b"\x90" * 10_000_000])
    assert client.ping(urgent=False)["seq"] == 41
    loud.close()
    context.term()


def test_no_daemon(place):
    with pytest.raises(NotRunning, match="no daemon runs as instance 't'"):
        client_.connect("t")
    with pytest.raises(ConfigError):
        client_.connect("../x")


def test_a_second_daemon_is_refused_and_a_stale_directory_is_known(server, place):
    with pytest.raises(Busy, match="running already"):
        instances_.take_lock(place)
    assert [(one.name, one.stale) for one in client_.instances()] == [("t", False)]
    dead = instances_.make_instance_dir("dead")
    os.close(instances_.take_lock(dead))
    dead.ctl.touch()
    assert [(one.name, one.stale) for one in client_.instances()] == [("dead", True), ("t", False)]
    lock_fd = instances_.take_lock(dead)
    assert instances_.clear_leftovers(dead) == ["ctl.sock"]
    os.close(lock_fd)


def test_modes_of_files(server, place):
    assert place.root.stat().st_mode & 0o777 == 0o700
    for path in (place.ctl, place.urgent, place.tel, place.endpoints, place.lock):
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_a_directory_that_others_can_read_is_refused(place):
    place.root.chmod(0o755)
    with pytest.raises(PermissionRefused, match="0755"):
        instances_.make_instance_dir("t")


def test_a_path_too_long_for_the_kernel_is_refused_with_five_parts(tmp_path):
    with pytest.raises(ConfigError, match="107 bytes") as caught:
        sockets.ipc_endpoint(tmp_path / ("x" * 120))
    assert caught.value.hint and caught.value.state


def test_endpoints_that_are_cut_or_foreign_are_none(place):
    for text in ("", "{", '{"v": 1}', "[]"):
        place.endpoints.write_text(text)
        assert instances_.read_endpoints(place) is None


def test_no_descriptor_is_left(server):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with client_.connect("t") as one, one.events():
            one.ping()
    deadline, pause = time.monotonic() + 10, threading.Event()
    while len(os.listdir("/proc/self/fd")) > before:  # the server's end of a connection is closed by its own thread
        assert time.monotonic() < deadline, os.listdir("/proc/self/fd")
        pause.wait(0.01)


def test_toml_of_a_map_reads_back(tmp_path):
    import tomllib

    from asid.start_files import _toml

    config = {"name": 'a "b"', "seed": 3, "machine": {"smt": 2}, "vm": [{"on": ["c0h0"], "guest": {"loop": True}}]}
    with contextlib.nullcontext():
        assert tomllib.loads(_toml(config)) == config


def test_an_instance_that_ended_in_order_is_not_stale(place, tmp_path):
    os.close(instances_.take_lock(place))
    instances_.point_to_run(place, tmp_path / "the-run")
    (found,) = client_.instances()
    assert (found.state, found.stale) == ("ended", False)
    assert instances_.last_run(place) == tmp_path / "the-run"


def test_the_daemons_clock_is_an_event_for_who_asks_for_it(server, client):
    with client.events("y.clock.") as clocks, client.events() as events:
        server.do(lambda s: s.publish("y.clock.", t=5, wall_ns=7))
        clock = clocks.next(2)
        assert clock is not None and (clock.type, clock.ts, clock.seq, clock.data["wall_ns"]) == ("clock", 5, 0, 7)
        assert events.next(0.1) is None


def test_a_place_is_filtered_by_its_topic(server, client):
    with client.events("c0h1") as events:
        server.do(lambda s: s.event("exit", 50, 1))
        server.do(lambda s: s.publish("e.c000.h1.exit.", seq=51, tseq=1, ts=1, type="exit", core=0, ht=1, data={}))
        event = events.next(2)
        assert event is not None and event.ht == 1


def test_a_late_reader_of_states_gets_the_present_one(server, client):
    with client.events("s.") as states:
        state = states.next(2)
        assert state is not None and (state.topic, state.data["mode"]) == ("s.c000.h0.", "GUEST")
