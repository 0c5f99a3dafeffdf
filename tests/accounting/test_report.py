"""The statement: complete, honest about its limits, and readable by machines."""

import copy
import json

import pytest

import accounting
from accounting.budget import RenyiOdometer
from accounting.caveats import CAVEATS
from accounting.events import (
    FixedSizeSampledEvent,
    GaussianEvent,
    Ledger,
    NeighboringRelation,
    PoissonSampledEvent,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
)
from accounting.pld import DefaultAccountant
from accounting.report import privacy_report

POISSON = PoissonSampledEvent(0.004, GaussianEvent(1.1))
UNVERIFIED = UnverifiedSamplingEvent(GaussianEvent(20.0))
ALWAYS = [
    "central",
    "one_person",
    "printed_metrics",
    "data_statistics",
    "tuning",
    "ledger_scope",
    "floating_point",
    "all_checkpoints",
]


def ledger_of(*events, noise_source: str = "secure/aes-ctr") -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.charge(event, l2_norm_clip=1.5, noise_source=noise_source, count=100)
    return ledger


def caveats(report) -> list[str]:
    return [caveat.id for caveat in report.caveats]


def test_statement_names_everything_it_depends_on() -> None:
    report = privacy_report(ledger_of(POISSON), 1e-5, population=60_000)
    epsilon = DefaultAccountant().compose(POISSON, 100).epsilon(1e-5)
    assert report.epsilon == epsilon
    text = str(report)
    for part in (
        str(epsilon),
        "1e-05",
        "one example",
        "add_or_remove_one",
        "100 x Gaussian noise, multiplier 1.1, Poisson-sampled with probability 0.004",
        "clip norm 1.5",
        "secure/aes-ctr",
        "pld",
        accounting.__version__,
    ):
        assert part in text
    assert caveats(report) == ALWAYS
    assert all(f"[{id}]" in text for id in ALWAYS)
    assert max(map(len, text.splitlines())) <= 100


def test_json_holds_the_same_statement() -> None:
    report = privacy_report(ledger_of(POISSON, UNVERIFIED), 1e-5)
    content = json.loads(report.to_json())
    assert content["epsilon"]["upper"] == report.epsilon.upper
    assert content["relation"] == "zero_out"
    assert content["unit"] == "one example"
    assert content["is_private"] is True
    assert [entry["count"] for entry in content["releases"]] == [100, 100]
    assert [entry["id"] for entry in content["caveats"]] == caveats(report)
    assert len(content["sampling"]) == 2
    events = {
        accounting.event_from_dict(entry["event"]) for entry in content["releases"]
    }
    assert events == {POISSON, UNVERIFIED}


def test_nothing_released_says_so() -> None:
    report = privacy_report(Ledger(), 1e-5)
    assert report.epsilon.upper == 0
    assert "holds no release" in str(report)
    assert [caveat.id for caveat in report.caveats] == ["ledger_scope"]
    assert json.loads(report.to_json())["releases"] == []


def test_ready_made_batches_are_stated_and_weaken_the_relation() -> None:
    report = privacy_report(ledger_of(UNVERIFIED), 1e-5)
    assert report.relation is NeighboringRelation.ZERO_OUT
    assert "unverified_sampling" in caveats(report)
    assert "no amplification" in str(report)


def test_relation_without_a_bound_is_refused() -> None:
    with pytest.raises(
        UnsupportedEventError, match="state the guarantee under zero_out"
    ):
        privacy_report(
            ledger_of(UNVERIFIED),
            1e-5,
            relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        )


def test_no_noise_is_infinite_and_said() -> None:
    report = privacy_report(ledger_of(GaussianEvent(0.0)), 1e-5)
    assert "no_noise" in caveats(report)
    assert "unbounded" in str(report)
    assert json.loads(report.to_json())["epsilon"]["upper"] == "infinity"


def test_insecure_noise_is_never_called_private() -> None:
    report = privacy_report(ledger_of(POISSON, noise_source="insecure/seeded"), 1e-5)
    assert not report.is_private
    assert caveats(report)[0] == "insecure_noise"
    assert "NOT PRIVATE" in str(report).splitlines()[0]


def test_delta_is_compared_with_the_population() -> None:
    ledger = ledger_of(POISSON)
    at, below = (privacy_report(ledger, 1e-3, population=n) for n in (1000, 999))
    assert "delta_too_large" in caveats(at)
    assert "delta_too_large" not in caveats(below)
    assert "delta_too_large" not in caveats(privacy_report(ledger, 1e-3))


@pytest.mark.parametrize("population", [0, -5])
def test_population_that_is_none_is_refused(population) -> None:
    with pytest.raises(ValueError, match="Pass the number of examples"):
        privacy_report(ledger_of(POISSON), 1e-5, population=population)


def test_delta_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="Pass for example 1e-6"):
        privacy_report(ledger_of(POISSON), 0.0)


def test_remarks_of_the_ledger_stand_in_the_caveats_they_belong_to() -> None:
    ledger = ledger_of(POISSON)
    ledger.remark("data_statistics", "layer 'norm' was adapted")
    ledger.remark("data_statistics", "layer 'norm' was adapted")
    ledger.remark("data_statistics", "layer 'words' was adapted")
    for known in (ledger, Ledger.from_json(ledger.to_json()), copy.copy(ledger)):
        report = privacy_report(known, 1e-5)
        (text,) = [c.text for c in report.caveats if c.id == "data_statistics"]
        ending = " Here: layer 'norm' was adapted; layer 'words' was adapted."
        assert text == CAVEATS["data_statistics"] + ending
        assert caveats(report) == ALWAYS


def test_training_that_stopped_early_is_offered_the_plan_and_the_odometer() -> None:
    ledger = ledger_of(POISSON)
    ledger.forgo(300, "EarlyStopping ended a fit")
    # What a copy knows is no second stop.
    ledger.merge(Ledger.from_json(ledger.to_json()))
    report = privacy_report(ledger, 1e-5)
    whole = DefaultAccountant().compose(POISSON, 400).epsilon(1e-5).upper
    odometer = RenyiOdometer(1e-5)
    odometer.record(POISSON, 100)
    comparisons = dict(report.comparisons)
    assert comparisons["plan"] == whole > report.epsilon.upper
    assert comparisons["odometer"] == odometer.epsilon > report.epsilon.upper
    assert caveats(report)[0] == "chosen_by_looking"
    assert "Here: EarlyStopping ended a fit." in report.caveats[0].text
    assert "of the whole plan" in str(report)
    assert "odometer" in report.to_json()


def test_two_equal_stops_are_both_planned() -> None:
    ledger = ledger_of(POISSON)
    ledger.forgo(100, "a fit was stopped")
    ledger.forgo(100, "a fit was stopped")
    comparisons = dict(privacy_report(ledger, 1e-5).comparisons)
    whole = DefaultAccountant().compose(POISSON, 300).epsilon(1e-5).upper
    assert comparisons["plan"] == whole


@pytest.mark.parametrize("sampling_probability, noise", [(0.004, 2.2), (0.008, 1.1)])
def test_releases_of_several_kinds_are_named_and_their_odometer_shown(
    sampling_probability: float, noise: float
) -> None:
    other = PoissonSampledEvent(sampling_probability, GaussianEvent(noise))
    report = privacy_report(ledger_of(POISSON, other), 1e-5)
    assert caveats(report) == ["chosen_by_looking", *ALWAYS]
    comparisons = dict(report.comparisons)
    assert "plan" not in comparisons
    assert comparisons["odometer"] > report.epsilon.upper


def test_odometer_without_a_bound_is_left_out() -> None:
    ledger = ledger_of(FixedSizeSampledEvent(1000, 10, GaussianEvent(2.0)))
    ledger.forgo(5, "a fit was stopped")
    comparisons = dict(privacy_report(ledger, 1e-5).comparisons)
    assert comparisons["odometer"] is None
    assert comparisons["plan"] > 0
