"""Sizes of ready-made batches are fixed beforehand, in whatever way one trains."""

import numpy as np
import pytest
import tensorflow as tf

import dp_train
from dp_train.sizes import FixedSizes
from tests.batteries import padding


@pytest.mark.parametrize("way", padding.WAYS)
def test_a_long_example_moves_no_other(way):
    padding.assert_a_long_example_moves_no_other(way)


def test_the_error_names_axis_tensor_and_way_out():
    sizes = FixedSizes()
    spec = {"words": tf.TensorSpec([None, None, 3]), "age": tf.TensorSpec([None, 1])}
    with pytest.raises(dp_train.NotPrivateError, match="Axis 1 of x.'words'. has no"):
        sizes.check((spec, None, None))
    y = tf.TensorSpec(None)
    with pytest.raises(dp_train.NotPrivateError, match=r"padded_shapes.*ensure_shape"):
        sizes.check((spec["age"], y, None))


def test_other_sizes_than_those_of_the_first_batch_are_refused():
    sizes = FixedSizes()
    sizes.check((np.zeros((4, 5)), np.zeros(4), None))
    sizes.check((tf.TensorSpec([None, 5]), tf.TensorSpec([None]), None))
    with pytest.raises(dp_train.NotPrivateError, match=r"y has the shape \(2,\).*\(\)"):
        sizes.check((np.zeros((4, 5)), np.zeros((4, 2)), None))


def test_sizes_are_fixed_from_fit_to_fit_until_the_model_is_compiled_again():
    model = padding.model()

    def fit(length):
        rows = padding.tokens(length)
        data = tf.data.Dataset.from_tensor_slices(rows).batch(4)
        model.fit(data, verbose=0)

    with padding.without_noise():
        fit(6)
        fit(6)
        spent = model.privacy_ledger.total
        with pytest.raises(dp_train.NotPrivateError, match="compile again"):
            fit(9)
        assert model.privacy_ledger.total == spent
        model.compile(
            dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=0.0), loss="mse"
        )
        fit(9)
    assert model.privacy_ledger.total > spent


def test_compiling_again_lets_a_custom_loop_go_on_with_other_sizes():
    model = padding.model()
    with padding.without_noise():
        for length in (6, 9):
            model.compile(
                dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=0.0), loss="mse"
            )
            padding.by_custom_loop(model, [length, length])
    assert model.privacy_ledger.total == 4


def test_loaders_of_any_size_share_a_custom_loop():
    model = padding.model()
    with padding.without_noise():
        for length in (6, 9):
            rows = padding.tokens(length)
            for batch in dp_train.PoissonLoader(*rows, batch_size=8):
                clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
                model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)
    assert model.privacy_ledger.total == 4


def test_trimming_drawn_batches_to_their_longest_is_refused_and_other_loaders_serve():
    model = padding.model(is_private=False)
    x, y, weight = padding.tokens(9)

    def trimmed(x, y, weight):
        longest = tf.reduce_max(tf.math.count_nonzero(x, 1))
        return x[:, :longest], y, weight

    with padding.without_noise():
        for length in (6, 9):
            rows = padding.tokens(length)
            optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=0.0)
            model.compile(optimizer, loss="mse")
            drawn = dp_train.PoissonLoader(*rows, batch_size=8).dataset_for(optimizer)
            model.fit(drawn, shuffle=False, verbose=0)
        assert optimizer.ledger.total == 4
        drawn = dp_train.PoissonLoader(x, y, weight, batch_size=8)
        with pytest.raises(dp_train.NotPrivateError, match="Axis 1 of x"):
            model.fit(
                drawn.dataset_for(optimizer).map(trimmed), shuffle=False, verbose=0
            )
    assert optimizer.ledger.total == 4
