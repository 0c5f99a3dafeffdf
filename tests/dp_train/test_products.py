"""Products of inputs and cotangents: four rules, one sum, and no norm too small."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import compiled

from dp_train.kernels import factored, product
from dp_train.kernels.product import BLOCKS, GRAM, KEPT, OUTER, Product
from tests.batteries import cancellation, gradient, sensitivity

RULES = (KEPT, GRAM, BLOCKS)
CASES = (
    "dense of rank 3",
    "dense of rank 4",
    "convolution of many channels",
    "shared layer",
    "attention",
    "weights of a sequence",
)


def norms(rule, a, g):
    """[b] norms of the products of [b, t, i] and [b, t, o]."""
    with cancellation.forced(rule):
        found = Product(tf.constant(a), tf.constant(g), a.shape[1])
    return np.sqrt(found.squared_norms(is_wide=False))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(factored, "_BLOCK_NUMBERS", 11)
    monkeypatch.setattr(factored, "_ROWS", 5)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_clipped_sum_equals_the_naive_loop_by_every_rule(case, rule):
    with cancellation.forced(rule):
        gradient.assert_clipped_sum_equals_the_loop(case, "bookkeeping")


@pytest.mark.parametrize("rule", RULES)
def test_steps_of_a_recurrent_layer_are_one_product(rule):
    with cancellation.forced(rule):
        gradient.assert_clipped_sum_equals_the_loop("lstm", "bookkeeping", subsets=(7,))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("rule", RULES)
def test_training_moves_the_weights_by_the_clipped_sum(rule):
    with cancellation.forced(rule):
        gradient.assert_training_applies_the_clipped_sum("attention", "bookkeeping", 3)


@pytest.mark.parametrize("policy", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_cancelling_rows_are_clipped(rule, policy):
    cancellation.assert_cancelling_rows_are_clipped(rule, policy)


@pytest.mark.parametrize("rule", [GRAM, BLOCKS])
def test_one_example_moves_the_sum_by_at_most_the_clip(rule):
    with cancellation.forced(rule):
        sensitivity.assert_neighbours_differ_by_at_most_the_clip(0.1, engine="auto")


def test_gram_norm_is_not_fooled_by_an_input_of_norm_907():
    # The rows (x, y) and (-x, y') differ by less than float32 Gram matrices can tell.
    x, y = np.float32([[2.0**20]]), np.float32([[2.0**20]])
    near = np.float32([[2.0**20 - 907 / 2.0**20 * 2**7]])
    a, g = np.stack([np.concatenate([x, -x])]), np.stack([np.concatenate([y, near])])
    true = np.linalg.norm(np.einsum("bti,bto->io", *np.float64([a, g])))
    naive = np.sum((a @ a.swapaxes(1, 2)) * (g @ g.swapaxes(1, 2)))
    assert true >= 907
    assert naive < true**2
    assert float(factored.gram(tf.constant(a), tf.constant(g))[0]) >= true**2


@pytest.mark.parametrize("rule", [GRAM, BLOCKS])
def test_norm_of_rows_that_do_not_cancel_is_tight(rule, monkeypatch):
    monkeypatch.setattr(factored, "_BLOCK_NUMBERS", 100)
    generator = np.random.default_rng(0)
    a, g = (generator.standard_normal((5, 64, n)).astype("float32") for n in (31, 17))
    products = np.einsum("bti,bto->bio", np.float64(a), np.float64(g))
    true = np.linalg.norm(products, axis=(1, 2))
    found = norms(rule, a, g)
    assert (found >= true).all()
    np.testing.assert_allclose(found, true, rtol=2e-3)


@pytest.mark.parametrize("rule", [GRAM, BLOCKS])
def test_norm_of_an_example_does_not_depend_on_the_others(rule):
    # Else one example more would move the factors of all others.
    generator = np.random.default_rng(0)
    a, g = generator.standard_normal((2, 50, 3, 4)).astype("float32")
    np.testing.assert_allclose(
        norms(rule, a, g)[:2], norms(rule, a[:2], g[:2]), rtol=1e-12
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**61])
@pytest.mark.parametrize("rule", [GRAM, BLOCKS])
def test_example_that_is_not_finite_or_too_large_has_norm_inf(rule, value):
    a = np.ones((3, 2, 3), "float32")
    g = np.ones((3, 2, 4), "float32")
    a[1, 0, 0], g[2, 1, 1] = value, value
    with cancellation.forced(rule):
        found = Product(tf.constant(a), tf.constant(g), 2)
        norms = np.sqrt(found.squared_norms(is_wide=True))
        keeps = np.isfinite(norms)
        assert list(keeps) == [True, False, False]
        total = found.weighted_sum(tf.constant([1.0, 0.0, 0.0]), tf.constant(keeps))
    np.testing.assert_array_equal(total, np.full((3, 4), 2.0))


def test_where_tensor_float_32_may_be_used_the_norm_pays_for_it(monkeypatch):
    a, g = np.ones((1, 2, 3), "float32"), np.ones((1, 2, 4), "float32")
    before = norms(GRAM, a, g)[0]
    monkeypatch.setattr(factored, "_is_tensor_float_32", lambda: True)
    assert before == pytest.approx(norms(KEPT, a, g)[0], rel=1e-3)
    assert norms(GRAM, a, g)[0] == pytest.approx(before * (1 + 2**-7), rel=1e-4)


@pytest.mark.parametrize(
    ("width_in", "width_out", "positions", "rule"),
    [
        (4096, 4096, 1, OUTER),
        (64, 256, 64, KEPT),  # layers of a small transformer
        (2304, 256, 64, KEPT),  # the last stage of a residual network
        (256, 256, 4, GRAM),
        (1024, 4096, 64, GRAM),
        (1024, 1024, 32, GRAM),
        (1024, 4096, 256, KEPT),
        (4096, 4096, 64, GRAM),
        (4096, 4096, 1024, BLOCKS),
        (4096, 4096, None, KEPT),
    ],
)
def test_cheapest_rule(width_in, width_out, positions, rule):
    assert product.cheapest(width_in, width_out, positions) == rule


def test_plan_shows_the_rule_of_every_product_and_what_it_keeps():
    model = keras.Sequential(
        [
            keras.Input((2, 2, 64)),
            layers.Conv2D(512, 2, padding="same", use_bias=False),
            layers.Dense(4, use_bias=False),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, use_bias=False),
        ]
    )
    model = compiled(model, gradients="bookkeeping")
    model.train_on_batch(np.ones((2, 2, 2, 64), "float32"), np.ones(2, "int32"))
    plan = model.privacy_plan()
    operands = 4 * (4 * 64 + 512)
    assert [(row.rule, row.kept_per_row) for row in plan.rows] == [
        (GRAM, operands),
        (KEPT, 512 * 4),
        (OUTER, 0),
    ]
    assert f"Gram           {operands:,}" in str(plan)
