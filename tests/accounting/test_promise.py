"""Bounds and reports as numbers: what is read of them may be promised."""

import json
import math
from decimal import Decimal

import pytest

from accounting import (
    Bounds,
    GaussianEvent,
    Ledger,
    NeighboringRelation,
    PoissonSampledEvent,
    UnverifiedSamplingEvent,
    privacy_report,
)

BOUNDS = Bounds(1.8, 1.82, 1.82101, True)


def report_of(source: str = "secure/x"):
    ledger = Ledger()
    event = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    ledger.charge(event, l2_norm_clip=1.0, noise_source=source, count=1000)
    return privacy_report(ledger, 1e-5)


def test_number_of_bounds_is_the_upper_one() -> None:
    assert float(BOUNDS) == 1.82101
    assert BOUNDS < 1.83 and BOUNDS <= 1.82101 and BOUNDS > 1.82 and BOUNDS >= 1.82101
    assert not BOUNDS < 1.82
    assert 1.82 < BOUNDS < 2
    assert BOUNDS < Bounds(0.0, 1.9, 1.9, True)
    assert max(Bounds(0.0, 1.0, 3.0, True), BOUNDS).upper == 3.0
    assert math.exp(BOUNDS) == math.exp(1.82101)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (".2f", "1.83"),
        (".0f", "2"),
        (".3g", "1.83"),
        (".1e", "1.9e+00"),
        ("8.3f", "   1.822"),
        (".5f", "1.82101"),
        (".0%", "183%"),
        ("g", "1.82101"),
    ],
)
def test_formats_round_up(spec, text) -> None:
    assert format(BOUNDS, spec) == text


@pytest.mark.parametrize("value", [1e-300, 3.2e-7, 0.1, 0.3, 2.675, 99.99, 1e22, 1e300])
@pytest.mark.parametrize("spec", [".1f", ".3f", ".3e", ".4g", "e", "f", "g", ".17g"])
def test_no_format_prints_less_than_the_bound(value, spec) -> None:
    printed = Decimal(format(Bounds(0.0, value, value, True), spec))
    assert printed >= Decimal(value) * (1 - Decimal("1e-16"))
    assert printed <= Decimal(value) + abs(printed) / 100 + Decimal("0.1")


def test_text_without_a_format_names_both_ends() -> None:
    assert f"{BOUNDS}" == str(BOUNDS) == "between 1.8 and 1.822"
    infinite = Bounds(0.0, math.inf, math.inf, True)
    assert f"{infinite:.2f}" == "inf"
    assert round(infinite, 2) == math.inf
    assert f"{Bounds(0.0, 0.0, 0.0, True):.2f}" == "0.00"


def test_rounding_goes_up() -> None:
    assert round(BOUNDS, 2) == 1.83
    assert round(BOUNDS) == 2
    assert round(Bounds(0.0, 1.5, 1.5, True), 3) == 1.5


def test_report_is_its_epsilon_where_a_number_is_asked_for() -> None:
    report = report_of()
    assert float(report) == report.epsilon.upper
    assert report < 1.83 < 2 * float(report)
    assert f"{report:.2f}" == f"{report.epsilon:.2f}" == "1.83"
    assert round(report, 1) == 1.9
    assert f"{report}" == str(report)
    assert json.loads(json.dumps(report.to_dict())) == json.loads(report.to_json())


def test_report_without_secret_noise_promises_nothing() -> None:
    assert float(report_of("insecure/seed")) == math.inf
    assert not report_of("insecure/seed") < 100


def test_notebooks_show_the_statement() -> None:
    ledger = Ledger()
    event = UnverifiedSamplingEvent(GaussianEvent(2.0))
    ledger.charge(event, l2_norm_clip=1.0, noise_source="<secure & true>")
    page = privacy_report(ledger, 1e-5)._repr_html_()
    for part in ("epsilon", "at delta 1e-05", "one example", "zero_out", "ready-made"):
        assert part in page
    assert page.count("<li>") == len(privacy_report(ledger, 1e-5).caveats)
    assert "nothing was released" in privacy_report(Ledger(), 1e-5)._repr_html_()


def test_rows_of_the_same_person_are_named() -> None:
    assert "one_person" in [caveat.id for caveat in report_of().caveats]
    ledger = Ledger()
    event = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    ledger.charge(event, l2_norm_clip=1.0, noise_source="secure/x")
    users = privacy_report(
        ledger,
        1e-5,
        relation=NeighboringRelation.ZERO_OUT,
        max_examples_per_user=4,
    )
    assert "one_person" not in [caveat.id for caveat in users.caveats]
    assert "one user with at most 4 examples" in str(users)
    assert "with one user" in users.relation_meaning
    assert users > privacy_report(ledger, 1e-5)


def test_deltas_that_disagree_are_named() -> None:
    ledger = Ledger()
    event = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    ledger.charge(event, l2_norm_clip=1.0, noise_source="secure/x")
    ledger.remark("several_deltas", "EpsilonLogger at delta 1e-05")
    assert "several_deltas" not in str(privacy_report(ledger, 1e-5))
    text = " ".join(str(privacy_report(ledger, 1e-6)).split())
    assert "Here: EpsilonLogger at delta 1e-05." in text
