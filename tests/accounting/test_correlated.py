"""Sensitivities of correlated noise against all sets of steps, one by one."""

import itertools
import math

import dp_accounting
import numpy as np
import pytest

from accounting import PldAccountant, RdpAccountant, matrix_mechanism, tree_aggregation
from accounting.events import (
    NeighboringRelation,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
)


def true_square(gram, participations: int, separation: int) -> float:
    """Largest sum over a set of steps, by trying them all."""
    best = 0.0
    steps = range(len(gram))
    for size in range(1, participations + 1):
        for chosen in itertools.combinations(steps, size):
            apart = all(b - a >= separation for a, b in itertools.pairwise(chosen))
            if apart:
                best = max(best, float(np.abs(gram[np.ix_(chosen, chosen)]).sum()))
    return best


def square_of(event: UnverifiedSamplingEvent) -> float:
    return 1 / event.event.noise_multiplier**2


@pytest.mark.parametrize(("participations", "separation"), [(1, 1), (2, 3), (3, 2)])
def test_sensitivity_covers_every_set_of_steps(participations, separation) -> None:
    generator = np.random.default_rng(7)
    for _ in range(20):
        encoder = np.tril(generator.standard_normal((7, 7)))
        true = true_square(encoder.T @ encoder, participations, separation)
        event = matrix_mechanism(
            1.0, encoder, participations=participations, separation=separation
        )
        assert true <= square_of(event) * (1 + 1e-12)
        assert square_of(event) <= true * (1 + 1e-9 if participations == 1 else 2)


def test_sensitivity_is_exact_where_far_columns_are_orthogonal() -> None:
    encoder = np.eye(12) + 0.5 * np.eye(12, k=-1)
    true = true_square(encoder.T @ encoder, 3, 2)
    event = matrix_mechanism(1.0, encoder, participations=3, separation=2)
    assert square_of(event) == pytest.approx(true, rel=1e-9)
    assert true == pytest.approx(3 * 1.25)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13])
def test_tree_is_the_matrix_of_its_complete_nodes(steps) -> None:
    rows = []
    for level in range(steps.bit_length()):
        for node in range(steps >> level):
            row = np.zeros(steps)
            row[node << level : (node + 1) << level] = 1
            rows.append(row)
    for participations, separation in ((1, 1), (2, 1), (2, 3)):
        how = {"participations": participations, "separation": separation}
        event = tree_aggregation(1.0, steps, **how)
        expected = matrix_mechanism(1.0, rows, **how)
        assert square_of(event) == pytest.approx(square_of(expected), rel=1e-11)
    true = true_square(np.array(rows).T @ np.array(rows), 2, 3)
    assert true <= square_of(
        tree_aggregation(1.0, steps, participations=2, separation=3)
    ) * (1 + 1e-12)
    height = math.floor(math.log2(steps)) + 1
    assert square_of(tree_aggregation(1.0, steps)) == pytest.approx(height)


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda: matrix_mechanism(1.0, [1.0, 2.0]), "Pass a matrix"),
        (lambda: matrix_mechanism(1.0, [[math.nan]]), "Pass a matrix"),
        (lambda: matrix_mechanism(1.0, [[0.0, 0.0]]), "Pass the encoder"),
        (lambda: matrix_mechanism(-1.0, [[1.0]]), r"Pass a number such as 1\.1"),
        (lambda: tree_aggregation(1.0, 0), "leaves of the tree"),
        (lambda: tree_aggregation(1.0, 8, participations=0), "how often one"),
        (lambda: tree_aggregation(1.0, 8, separation=-1), "how far apart one"),
        (lambda: tree_aggregation(1.0, 8, separation=0), "how far apart one"),
        (lambda: matrix_mechanism(1.0, [[1.0]], separation=-1), "how far apart one"),
        (lambda: tree_aggregation(1.0, 5000, participations=2), "shorter encoder"),
    ],
)
def test_what_has_no_sensitivity_is_refused(build, advice) -> None:
    with pytest.raises(ValueError, match=advice):
        build()


@pytest.mark.parametrize("steps", [1, 4, 7, 9, 10])
@pytest.mark.parametrize("separation", [1, 2, 4, 10])
@pytest.mark.parametrize("participations", [1, 3, 99])
def test_no_more_participations_count_than_fit_so_far_apart(
    steps, separation, participations
) -> None:
    """All patterns one by one; exact where a single one fits, and never below."""
    how = {"participations": participations, "separation": separation}
    fit = min(participations, math.ceil(steps / separation))
    encoder = np.tri(steps)
    true = true_square(encoder.T @ encoder, fit, separation)
    found = square_of(matrix_mechanism(1.0, encoder, **how))
    assert true * (1 - 1e-9) <= found <= true * (1 + 1e-9 if fit == 1 else 1.2)
    capped = matrix_mechanism(1.0, encoder, participations=fit, separation=separation)
    assert square_of(capped) == pytest.approx(found, rel=1e-12)


def test_figures_of_sensitivities_with_a_separation() -> None:
    event = matrix_mechanism(1.0, np.tri(10), participations=99, separation=10)
    assert square_of(event) == pytest.approx(10)
    event = tree_aggregation(1.0, 9, participations=3, separation=4)
    assert square_of(event) == pytest.approx(11)
    # Nothing changes once only one participation fits.
    event = tree_aggregation(1.0, 8, participations=5, separation=8)
    assert square_of(event) == pytest.approx(4)


@pytest.mark.parametrize("make", [PldAccountant, RdpAccountant])
def test_no_bound_is_given_for_adding_or_removing_an_example(make) -> None:
    event = tree_aggregation(2.0, 16, participations=2, separation=8)
    with pytest.raises(UnsupportedEventError, match="under zero_out"):
        make(NeighboringRelation.ADD_OR_REMOVE_ONE).compose(event)
    zeroed, replaced = (
        make(relation).compose(event).epsilon(1e-6).upper
        for relation in (NeighboringRelation.ZERO_OUT, NeighboringRelation.REPLACE_ONE)
    )
    assert 0 < zeroed < replaced


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 16), (5.0, 100), (1.0, 1)])
def test_single_pass_over_a_tree_costs_what_dp_accounting_says(noise, steps) -> None:
    """Their relation with a special element is zeroing; Renyi against Renyi."""
    theirs = dp_accounting.rdp.RdpAccountant(
        orders=np.exp(np.linspace(math.log(1.01), math.log(300.0), 2000)),
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL,
    ).compose(dp_accounting.SingleEpochTreeAggregationDpEvent(noise, steps))
    ours = RdpAccountant(NeighboringRelation.ZERO_OUT)
    ours.compose(tree_aggregation(noise, steps))
    expected = theirs.get_epsilon(1e-6)
    assert ours.epsilon(1e-6).upper == pytest.approx(expected, rel=1e-3)
