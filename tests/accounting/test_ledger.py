"""The ledger never forgets: forks, merges, copies, threads and files."""

import copy
import json
import math
import os
import pickle
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.events import (
    GaussianEvent,
    Ledger,
    NeighboringRelation,
    PoissonSampledEvent,
    Release,
    UnverifiedSamplingEvent,
)

EVENTS = [
    GaussianEvent(1.0),
    PoissonSampledEvent(0.01, GaussianEvent(1.0)),
    UnverifiedSamplingEvent(GaussianEvent(2.0)),
]
FIXED = settings(derandomize=True, deadline=None, max_examples=150)
# (event, clip, count) triples, few enough that runs of equal ones occur.
CHARGES = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.sampled_from([1.0, 2.0]), st.integers(1, 3)),
    max_size=6,
)
COPIES = st.sampled_from(
    [
        copy.copy,
        copy.deepcopy,
        lambda ledger: pickle.loads(pickle.dumps(ledger)),
        lambda ledger: Ledger.from_json(ledger.to_json()),
    ]
)


def charge(ledger: Ledger, charges) -> Ledger:
    for event, clip, count in charges:
        ledger.charge(event, l2_norm_clip=clip, noise_source="secure", count=count)
    return ledger


def merged(*ledgers: Ledger) -> Ledger:
    result = Ledger()
    for ledger in ledgers:
        result.merge(ledger)
    return result


def counts(ledger: Ledger) -> dict:
    return {(r.event, r.l2_norm_clip, r.noise_source): r.count for r in ledger}


def assert_at_least(ledger: Ledger, floor: Ledger) -> None:
    """Fails unless the ledger counts at least what the other one counts."""
    have = counts(ledger)
    for key, count in counts(floor).items():
        assert have.get(key, 0) >= count


def test_assert_at_least_fails_on_a_lower_count() -> None:
    with pytest.raises(AssertionError):
        assert_at_least(Ledger(), charge(Ledger(), [(EVENTS[0], 1.0, 1)]))


@FIXED
@given(CHARGES)
def test_total_is_the_sum_of_all_charges(charges) -> None:
    ledger = charge(Ledger(), charges)
    assert ledger.total == sum(count for _, _, count in charges)
    assert sum(release.count for release in ledger) == ledger.total
    assert len(ledger) == len(ledger.releases) == len(counts(ledger))


@FIXED
@given(CHARGES)
def test_order_of_releases_depends_on_content_only(charges) -> None:
    forward = charge(Ledger(), charges)
    backward = charge(Ledger(), reversed(charges))
    assert forward.releases == backward.releases


@FIXED
@given(CHARGES)
def test_json_round_trip_keeps_every_release(charges) -> None:
    ledger = charge(Ledger(), charges)
    text = ledger.to_json()
    again = Ledger.from_json(text)
    assert again.releases == ledger.releases
    assert again.to_json() == text


@FIXED
@given(CHARGES, CHARGES, CHARGES, COPIES)
def test_forks_of_one_checkpoint_are_both_counted(common, left, right, copied) -> None:
    first = charge(Ledger(), common)
    second = charge(copied(first), right)
    charge(first, left)
    union = charge(Ledger(), [*common, *left, *right])
    for whole in (merged(first, second), merged(second, first)):
        assert whole.releases == union.releases
    first.merge(second)
    assert first.releases == union.releases
    second.merge(first)
    assert second.releases == union.releases


@FIXED
@given(CHARGES, CHARGES, COPIES)
def test_merging_twice_or_with_an_older_copy_changes_nothing(old, new, copied) -> None:
    ledger = charge(Ledger(), old)
    older = copied(ledger)
    charge(ledger, new)
    expected = ledger.releases
    for _ in range(2):
        ledger.merge(older)
        ledger.merge(ledger)
        assert ledger.releases == expected
    older.merge(ledger)
    assert older.releases == expected


@FIXED
@given(CHARGES, CHARGES, CHARGES)
def test_run_known_longer_elsewhere_is_kept_and_left(old, new, later) -> None:
    longer = charge(Ledger(), old)
    state = longer._snapshot()
    stale = Ledger()
    stale._runs = state
    # As after restoring a process image: the stale ledger still writes the same run.
    stale._open = next(iter(state.values()), None)
    charge(longer, new)
    stale.merge(longer)
    assert stale.releases == longer.releases
    charge(stale, later)
    assert merged(longer, stale).releases == stale.releases
    if new:
        both = charge(Ledger(), [*old, *new, *later])
        assert stale.releases == both.releases


ENTRIES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=5)


def from_entries(entries, run_id="0" * 32) -> Ledger:
    content = {
        "schema_version": 1,
        "runs": [
            {
                "run_id": run_id,
                "entries": [
                    {
                        "event": EVENTS[index].to_dict(),
                        "count": count,
                        "l2_norm_clip": 1.0,
                        "noise_source": "secure",
                    }
                    for index, count in entries
                ],
            }
        ],
    }
    return Ledger.from_json(json.dumps(content))


@FIXED
@given(ENTRIES, ENTRIES, ENTRIES)
def test_versions_of_one_run_that_conflict_are_never_lowered(a, b, c) -> None:
    first, second, third = from_entries(a), from_entries(b), from_entries(c)
    both = merged(first, second)
    assert_at_least(both, first)
    assert_at_least(both, second)
    assert counts(both) == counts(merged(second, first))
    assert counts(merged(both, both)) == counts(both)
    assert counts(merged(both, third)) == counts(merged(first, merged(second, third)))


def test_conflict_keeps_the_larger_count_of_each_kind() -> None:
    both = merged(from_entries([(0, 6)]), from_entries([(0, 5), (1, 1)]))
    assert counts(both) == {
        (EVENTS[0], 1.0, "secure"): 6,
        (EVENTS[1], 1.0, "secure"): 1,
    }


def test_merge_leaves_the_other_ledger_alone() -> None:
    other = charge(Ledger(), [(EVENTS[0], 1.0, 2)])
    ledger = charge(Ledger(), [(EVENTS[0], 1.0, 3)])
    ledger.merge(other)
    charge(ledger, [(EVENTS[0], 1.0, 1)])
    assert (ledger.total, other.total) == (6, 2)


def test_charges_from_threads_are_all_counted() -> None:
    ledger = Ledger()

    def work(index: int) -> None:
        for _ in range(500):
            charge(ledger, [(EVENTS[index % 3], 1.0, 1)])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.total == 3000


def test_insecure_noise_marks_the_ledger_for_good() -> None:
    ledger = charge(Ledger(), [(EVENTS[0], 1.0, 1)])
    assert ledger.is_private
    other = Ledger()
    other.charge(EVENTS[0], l2_norm_clip=1.0, noise_source="insecure/seeded")
    ledger.merge(other)
    assert not ledger.is_private
    assert not Ledger.from_json(ledger.to_json()).is_private


def test_ready_made_batches_weaken_the_relation() -> None:
    ledger = charge(Ledger(), [(EVENTS[1], 1.0, 1)])
    assert ledger.supported_relation() is NeighboringRelation.ADD_OR_REMOVE_ONE
    charge(ledger, [(EVENTS[2], 1.0, 1)])
    assert ledger.supported_relation() is NeighboringRelation.ZERO_OUT


def test_empty_ledger_is_private_and_empty() -> None:
    ledger = Ledger()
    assert (ledger.total, len(ledger), list(ledger), ledger.is_private) == (
        0,
        0,
        [],
        True,
    )
    assert Ledger.from_json(ledger.to_json()).releases == ()
    assert repr(charge(ledger, [(EVENTS[0], 1.0, 4)])) == (
        "<Ledger: 4 releases of 1 kinds>"
    )


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"event": 1.1}, "Pass for example GaussianEvent"),
        ({"count": 0}, "Pass the number of releases"),
        ({"count": -3}, "Pass the number of releases"),
        ({"count": 1.0}, "Pass the number of releases"),
        ({"count": True}, "Pass the number of releases"),
        ({"l2_norm_clip": 0.0}, "Pass the clip norm"),
        ({"l2_norm_clip": math.inf}, "Pass the clip norm"),
        ({"l2_norm_clip": math.nan}, "Pass the clip norm"),
        ({"l2_norm_clip": "1"}, "Pass the clip norm"),
        ({"noise_source": ""}, "Pass the name of the generator"),
        ({"noise_source": None}, "Pass the name of the generator"),
    ],
)
@pytest.mark.parametrize("is_second", [False, True])
def test_charge_out_of_range_is_refused_and_changes_nothing(
    changes, advice, is_second
) -> None:
    good = {
        "event": EVENTS[0],
        "count": 1,
        "l2_norm_clip": 1.0,
        "noise_source": "secure",
    }
    ledger = Ledger()
    if is_second:
        ledger.charge(**good)
    with pytest.raises(ValueError, match=advice):
        ledger.charge(**(good | changes))
    assert ledger.total == is_second
    with pytest.raises(ValueError, match=advice):
        Release(**(good | changes))


def test_merge_with_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="Pass a Ledger"):
        Ledger().merge("{}")


def damaged(change) -> str:
    """A good file with one change made to its content."""
    content = json.loads(from_entries([(0, 1), (1, 2)]).to_json())
    change(content, content["runs"][0], content["runs"][0]["entries"][0])
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c, r, e: c.pop("runs"), "the ledger has the fields"),
        (lambda c, r, e: c.update(extra=1), "the ledger has the fields"),
        (lambda c, r, e: c.update(schema_version=2), "schema_version is 2"),
        (lambda c, r, e: c.update(schema_version=True), "schema_version is True"),
        (lambda c, r, e: c.update(runs={}), "runs is {}, not a list"),
        (lambda c, r, e: c["runs"].append(r), "occurs twice"),
        (lambda c, r, e: c["runs"].append(3), "a run is 3, not an object"),
        (lambda c, r, e: r.update(run_id="xyz"), "not 32 hexadecimal digits"),
        (lambda c, r, e: r.update(run_id=7), "not 32 hexadecimal digits"),
        (lambda c, r, e: r.update(entries=None), "entries is None, not a list"),
        (lambda c, r, e: r["entries"].append([]), "an entry is"),
        (lambda c, r, e: e.pop("count"), "an entry has the fields"),
        (lambda c, r, e: e.update(count=-1), "count is -1"),
        (lambda c, r, e: e.update(count=0), "count is 0"),
        (lambda c, r, e: e.update(count="3"), "count is '3'"),
        (lambda c, r, e: e.update(count=1.5), "count is 1.5"),
        (lambda c, r, e: e.update(count=True), "count is True"),
        (lambda c, r, e: e.update(l2_norm_clip=math.nan), "l2_norm_clip is nan"),
        (lambda c, r, e: e.update(noise_source=1), "noise_source is 1"),
        (lambda c, r, e: e.update(event={"type": "Fancy"}), "Unknown event type"),
    ],
)
def test_file_that_is_damaged_is_refused(change, reason) -> None:
    with pytest.raises(ValueError, match="Restore the file from a copy") as caught:
        Ledger.from_json(damaged(change))
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, None, 3])
def test_text_that_is_no_ledger_is_refused(text) -> None:
    with pytest.raises(ValueError, match="Restore the file from a copy"):
        Ledger.from_json(text)


def test_field_given_twice_is_refused() -> None:
    text = (
        from_entries([(0, 9)]).to_json().replace('"count": 9', '"count": 9,"count": 1')
    )
    with pytest.raises(ValueError, match="a field is given twice"):
        Ledger.from_json(text)


def test_forked_processes_never_write_the_same_run() -> None:
    ledger = Ledger()
    ledger.charge(GaussianEvent(1.0), l2_norm_clip=1.0, noise_source="s", count=10)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        ledger.charge(GaussianEvent(1.0), l2_norm_clip=1.0, noise_source="s", count=30)
        os.write(writing, ledger.to_json().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        of_child = Ledger.from_json(pipe.read())
    ledger.charge(GaussianEvent(1.0), l2_norm_clip=1.0, noise_source="s", count=20)
    ledger.merge(of_child)
    assert ledger.total == 60


def test_remarks_travel_with_copies_files_and_merges() -> None:
    ledger = charge(Ledger(), [(GaussianEvent(1.0), 1.0, 3)])
    ledger.remark("printed_metrics", "somebody looked")
    ledger.forgo(2, "somebody stopped")
    other = Ledger()
    other.remark("data_statistics", "a layer was adapted")
    other.merge(ledger)
    for copied in (
        Ledger.from_json(other.to_json()),
        pickle.loads(pickle.dumps(other)),
    ):
        assert copied.remarks == other.remarks
    assert [r.caveat for r in other.remarks] == [
        "data_statistics",
        "printed_metrics",
        "chosen_by_looking",
    ]
    assert other.remarks[2].foregone == (GaussianEvent(1.0), 2)


@pytest.mark.parametrize(
    "change",
    [
        {"caveat": "unknown"},
        {"detail": 3},
        {"count": 0},
        {"event": {"type": "Nothing"}},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_remark_that_is_damaged_is_refused(change) -> None:
    ledger = charge(Ledger(), [(GaussianEvent(1.0), 1.0, 3)])
    ledger.forgo(2, "somebody stopped")
    content = json.loads(ledger.to_json())
    content["remarks"][0] |= change
    with pytest.raises(ValueError, match="cannot be read"):
        Ledger.from_json(json.dumps(content))


def test_remark_without_a_caveat_or_a_release_is_refused() -> None:
    with pytest.raises(ValueError, match="no checklist knows"):
        Ledger().remark("unknown", "something")
    with pytest.raises(ValueError, match="Charge first"):
        Ledger().forgo(1, "somebody stopped")
