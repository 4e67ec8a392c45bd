"""Targets: the grammar selects what it says, and a target that selects nothing is an error with a way out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asid.errors import EXIT_USAGE, AsidError, ConfigError, NoSuchObject
from asid.targets import Topology, VmPlaces, format_place, format_places, resolve

# c0h0 and c0h1 run tenant-a (vm1); c1h0 runs vCPU 0 of vm2, whose vCPU 1 is detached; vm3 is on nothing.
TWO_CORES = Topology(
    2, 2, (VmPlaces("tenant-a", ((0, 0), (0, 1))), VmPlaces("vm2", ((1, 0), None)), VmPlaces("gone", (None,)))
)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("c0", "c0h0,c0h1"),
        ("c0h1", "c0h1"),
        ("c0h0,c1h1", "c0h0,c1h1"),
        ("c1h1, c0h0", "c0h0,c1h1"),
        ("c0-1", "c0h0,c0h1,c1h0,c1h1"),
        ("c*h1", "c0h1,c1h1"),
        ("c1h*", "c1h0,c1h1"),
        ("c0h0-1", "c0h0,c0h1"),
        ("c0,c0h0", "c0h0,c0h1"),
        ("vm1", "c0h0,c0h1"),
        ("vm1/1", "c0h1"),
        ("vm1/0-1", "c0h0,c0h1"),
        ("vm1/*", "c0h0,c0h1"),
        ("tenant-a", "c0h0,c0h1"),
        ("tenant-a/0", "c0h0"),
        ("vm2", "c1h0"),
        ("vm1-2", "c0h0,c0h1,c1h0"),
        ("vm*", "c0h0,c0h1,c1h0"),
    ],
)
def test_what_a_target_selects(text, places):
    assert format_places(resolve(text, TWO_CORES)) == places


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("", ConfigError, "must be a target"),
        ("h1", NoSuchObject, "no VM is called 'h1'"),
        ("c", NoSuchObject, "no VM is called 'c'"),
        ("c0h", ConfigError, "at 'c0h'"),
        ("c0,,c1", ConfigError, "an empty item"),
        ("c0h1/2", ConfigError, "at 'c0h1/2'"),
        ("C0", ConfigError, "at 'C0'"),
        ("c-1", ConfigError, "at 'c-1'"),
        ("c2", NoSuchObject, "there is no core c2: must be c0 to c1"),
        ("c0h2", NoSuchObject, "there is no hyperthread h2: must be h0 to h1"),
        ("c0-7", NoSuchObject, "there is no core c7"),
        ("c1-0", ConfigError, "runs backwards"),
        ("vm0", NoSuchObject, "there is no VM vm0: must be vm1 to vm3"),
        ("vm4", NoSuchObject, "there is no VM vm4"),
        ("vm1/2", NoSuchObject, "must be 0 to 1"),
        ("gone", NoSuchObject, "none of its vCPUs is on a hyperthread"),
        ("vm2/1", NoSuchObject, "none of its vCPUs is on a hyperthread"),
        ("tenant-b", NoSuchObject, "must be vm1 to vm3, or tenant-a"),
        ("c0," * 2000, ConfigError, "must be a target"),
        ("c9999999", ConfigError, "at 'c9999999'"),
    ],
)
def test_what_is_refused(text, error, says):
    with pytest.raises(error) as caught:
        resolve(text, TWO_CORES, "inject.0.target")
    assert says in str(caught.value)
    assert str(caught.value).startswith("inject.0.target = ")
    assert len(str(caught.value)) < 300
    assert caught.value.exit_code == EXIT_USAGE


def test_a_vm_where_there_is_none_says_so():
    with pytest.raises(NoSuchObject, match="there is no VM: must be a core"):
        resolve("vm1", Topology(1, 2))


@settings(max_examples=30)
@given(st.integers(1, 64), st.sampled_from([1, 2, 4, 8]), st.data())
def test_every_hyperthread_is_named_by_its_own_name(cores, smt, data):
    topology = Topology(cores, smt)
    core, ht = data.draw(st.integers(0, cores - 1)), data.draw(st.integers(0, smt - 1))
    assert resolve(format_place(core, ht), topology) == ((core, ht),)
    assert resolve("c*", topology) == topology.all_places()
    assert len(resolve(f"c{core}", topology)) == smt


@given(st.text(max_size=30))
def test_any_text_selects_or_is_refused(text):
    try:
        places = resolve(text, TWO_CORES)
    except AsidError as error:
        places, ways_out = None, error.allowed or error.state or error.hint
    assert ways_out if places is None else set(places) <= set(TWO_CORES.all_places())
