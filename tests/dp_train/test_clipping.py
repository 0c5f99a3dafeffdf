"""One example moves the sum by at most l2_norm_clip, whatever it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from dp_train import clipping
from tests.batteries import sensitivity
from tests.batteries.sensitivity import CLIPS, Setting

ULP = {"float32": 2.0**-23, "float64": 2.0**-52}


def contribution(values, l2_norm_clip, dtype="float32"):
    """What one example with these gradient entries adds to the sum, as float64."""
    gradient = tf.constant(np.array([values]), dtype)
    (clipped,) = clipping.sum_clipped([gradient], l2_norm_clip)
    return clipped.numpy().astype(np.float64)


# name: (entries, dtype, expected contribution at l2_norm_clip=1)
EDGES = {
    "zero": ([0.0, 0.0], "float32", [0.0, 0.0]),
    "below the clip": ([0.3, -0.4], "float32", [0.3, -0.4]),
    "exactly the clip": ([0.6, 0.8], "float64", [0.6, 0.8]),
    "exactly the clip on an axis": ([0.0, -1.0], "float32", [0.0, -1.0]),
    "above the clip": ([3.0, -4.0], "float32", [0.6, -0.8]),
    "huge": ([3e30, 4e30], "float32", [0.6, 0.8]),
    "square beyond float32": ([0.0, 2e19], "float32", [0.0, 1.0]),
    "small": ([3e-30, 4e-30], "float32", [3e-30, 4e-30]),
    "NaN": ([0.1, math.nan], "float32", [0.0, 0.0]),
    "infinity": ([0.1, math.inf], "float32", [0.0, 0.0]),
    "minus infinity": ([-math.inf, 0.1], "float32", [0.0, 0.0]),
    "both infinities": ([-math.inf, math.inf], "float32", [0.0, 0.0]),
    "norm beyond float64": ([1e200, 1e200], "float64", [0.0, 0.0]),
    "float16": ([3.0, -4.0], "float16", [0.6, -0.8]),
    "square beyond float16": ([30_000.0, 40_000.0], "float16", [0.6, 0.8]),
    "bfloat16": ([3.0, -4.0], "bfloat16", [0.6, -0.8]),
}


@pytest.mark.parametrize("edge", EDGES)
def test_contribution_of_an_edge_case(edge):
    values, dtype, expected = EDGES[edge]
    assert contribution(values, 1.0, dtype) == pytest.approx(expected, rel=1e-6)


def test_denormal_gradient_adds_no_more_than_itself():
    assert np.all(np.abs(contribution([1e-40, -1e-42], 1.0)) <= [1.001e-40, 1.001e-42])


def test_largest_float32_adds_at_most_the_clip():
    largest = float(np.finfo(np.float32).max)
    for l2_norm_clip in (1e-6, 1.0, 1e6):
        moved = np.linalg.norm(contribution([largest] * 9, l2_norm_clip))
        assert moved <= l2_norm_clip * (1 + 1e-6)


def test_narrow_gradients_are_summed_in_float32():
    for dtype in ("float16", "bfloat16"):
        (total,) = clipping.sum_clipped([tf.ones([3000, 1], dtype)], 1.0)
        assert total.dtype == tf.float32
        assert total.numpy() == pytest.approx([3000.0])


def test_norm_is_taken_over_all_variables_together():
    gradients = [tf.constant([[3.0]]), tf.constant([[[0.0, 4.0]]])]
    assert clipping.per_example_norms(gradients).numpy() == pytest.approx([5.0])
    clipped = clipping.sum_clipped(gradients, 1.0)
    assert clipped[0].numpy() == pytest.approx([0.6])
    assert clipped[1].numpy() == pytest.approx(np.array([[0.0, 0.8]]))


def test_an_example_that_is_not_finite_leaves_the_others_as_they_were():
    rows = np.array([[0.1, 0.2], [math.nan, 0.0], [0.3, -0.1]], np.float32)
    (total,) = clipping.sum_clipped([tf.constant(rows)], 1.0)
    assert total.numpy() == pytest.approx([0.4, 0.1])


def test_padding_adds_nothing():
    rows = tf.constant([[0.1, 0.2], [7.0, math.nan], [0.3, -0.1]])
    (total,) = clipping.sum_clipped([rows], 1.0, tf.constant([True, False, False]))
    assert total.numpy() == pytest.approx([0.1, 0.2])


def test_no_examples_sum_to_zeros():
    sums = clipping.sum_clipped([tf.zeros([0, 3]), tf.zeros([0, 2, 2])], 1.0)
    assert [s.numpy().tolist() for s in sums] == [[0.0] * 3, [[0.0] * 2] * 2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_of_edge_norms(dtype):
    norms = tf.constant([0.0, 0.5, 1.0, 2.0, math.inf, math.nan], dtype)
    factors = clipping.clip_factors(norms, 1.0)
    assert factors.dtype == norms.dtype
    assert factors.numpy().tolist() == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factor_times_norm_is_at_most_the_clip(dtype):
    largest = 2.0**127 if dtype == "float32" else 1e150
    width = 32 if dtype == "float32" else 64

    @given(
        st.lists(st.floats(0, largest, width=width), min_size=1, max_size=20),
        st.floats(1e-30, 1e30),
    )
    def check(norms, l2_norm_clip):
        given_norms = tf.constant(norms, dtype)
        factors = clipping.clip_factors(given_norms, l2_norm_clip).numpy()
        assert np.all((factors >= 0) & (factors <= 1))
        products = factors.astype(np.float64) * given_norms.numpy().astype(np.float64)
        # One ulp for the rounding of C, one for that of the quotient.
        assert np.all(products <= l2_norm_clip * (1 + 2 * ULP[dtype]))

    check()


@given(
    st.lists(
        st.floats(-(2.0**127), 2.0**127, width=32)
        | st.sampled_from([math.nan, math.inf, -math.inf]),
        min_size=1,
        max_size=12,
    ),
    st.floats(1e-3, 1e3),
)
def test_contribution_is_at_most_the_clip(values, l2_norm_clip):
    moved = np.linalg.norm(contribution(values, l2_norm_clip))
    assert moved <= l2_norm_clip * (1 + 1e-6)


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12),
    st.floats(1e-3, 1e3),
)
def test_contribution_keeps_the_direction(values, l2_norm_clip):
    gradient = np.array(values, np.float64)
    size = np.linalg.norm(gradient)
    expected = gradient * (l2_norm_clip / size if size > l2_norm_clip else 1.0)
    assert contribution(values, l2_norm_clip) == pytest.approx(
        expected, rel=1e-6, abs=1e-37
    )


@pytest.mark.parametrize(
    "l2_norm_clip", [0, -1.0, math.inf, -math.inf, math.nan, None, "one", [1.0, 2.0]]
)
def test_clip_that_bounds_nothing_is_refused(l2_norm_clip):
    with pytest.raises(ValueError, match="positive, finite.*Received.*Start from 1.0"):
        clipping.check_l2_norm_clip(l2_norm_clip)
    with pytest.raises(ValueError, match="l2_norm_clip must be"):
        clipping.clip_factors(tf.constant([1.0]), l2_norm_clip)


def test_clip_may_be_any_positive_number():
    assert clipping.check_l2_norm_clip(np.float32(0.5)) == 0.5
    assert clipping.check_l2_norm_clip(3) == 3.0


# -------------------------------------------------------- through the public fit

SETTINGS = {
    "plain": Setting(),
    "weights": Setting(max_weight=50.0),
    "weights, one chunk": Setting(max_weight=50.0, microbatch_size="auto"),
    "weights, loop": Setting(max_weight=50.0, engine="loop", microbatch_size="auto"),
    "bfloat16": Setting(policy="mixed_bfloat16"),
    "bfloat16, weights": Setting(max_weight=50.0, policy="mixed_bfloat16"),
}


@pytest.mark.parametrize("l2_norm_clip", CLIPS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_one_example_moves_training_by_at_most_the_clip(setting, l2_norm_clip):
    sensitivity.assert_one_example_moves_the_sum_by_at_most_the_clip(
        SETTINGS[setting], l2_norm_clip
    )
