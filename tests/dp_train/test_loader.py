"""PoissonLoader keeps rows together and draws afresh at every look."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import compiled, data

import dp_train
from dp_train.loader import is_batched, length, peeked


def test_rows_stay_with_their_labels_and_weights():
    ids = np.arange(1000)
    x = {"a": ids.astype("float32")[:, None], "b": np.stack([ids, -ids], axis=1)}
    loader = dp_train.PoissonLoader(x, 2 * ids, 3.0 * ids, batch_size=100)
    drawn, y, weight = loader[0]
    np.testing.assert_array_equal(2 * drawn["a"][:, 0], y)
    np.testing.assert_array_equal(drawn["b"], np.stack([y // 2, -(y // 2)], axis=1))
    np.testing.assert_array_equal(weight, 1.5 * y)


def test_every_look_is_a_fresh_draw():
    loader = dp_train.PoissonLoader(np.arange(1000), batch_size=100)
    (first,), (second,) = loader[0], loader[0]
    assert set(first.tolist()) != set(second.tolist())


def test_epoch_has_as_many_batches_as_keras_would_make():
    for examples, batch_size, batches in ((60, 7, 9), (60, 60, 1), (60, 1, 60)):
        loader = dp_train.PoissonLoader(np.zeros((examples, 2)), batch_size=batch_size)
        assert len(loader) == loader.num_batches == batches
    loader = dp_train.PoissonLoader(np.zeros(10), batch_size=5, steps_per_epoch=7)
    assert len(loader) == len(list(loader)) == 7


def test_floats_take_the_floatx_of_keras():
    (x,) = dp_train.PoissonLoader(np.zeros((10, 2)), batch_size=10)[0]
    assert x.dtype == keras.config.floatx()
    (ids,) = dp_train.PoissonLoader(np.zeros(10, "uint8"), batch_size=10)[0]
    assert ids.dtype == np.uint8


def test_tensors_are_taken_as_arrays():
    x, y = data()
    loader = dp_train.PoissonLoader(tf.constant(x), tf.constant(y), batch_size=60)
    assert {len(t) for t in loader[0]} == {60}


def test_a_loader_given_to_fit_is_charged_as_poisson():
    model = compiled()
    model.fit(dp_train.PoissonLoader(*data(), batch_size=12), epochs=2, verbose=0)
    (release,) = model.privacy_ledger.releases
    assert (release.count, release.event.sampling_probability) == (10, 0.2)


def test_arrays_of_no_examples_or_no_rows_are_refused():
    with pytest.raises(ValueError, match="non-empty"):
        dp_train.PoissonLoader(np.zeros((0, 2)), batch_size=1)
    with pytest.raises(ValueError, match="rank 0"):
        dp_train.PoissonLoader(3.0, batch_size=1)
    with pytest.raises(ValueError, match="dtype object"):
        dp_train.PoissonLoader(np.array([{}, {}]), batch_size=1)


def test_peeking_loses_no_batch():
    batches = iter([(np.zeros(2), np.ones(2)), (np.ones(3), np.ones(3))])
    rest, (x, y, weight), _ = peeked(batches)
    assert (len(x), len(y), weight) == (2, 2, None)
    assert [len(x) for x, _ in rest] == [2, 3]


def test_kinds_of_data_are_told_apart():
    dataset = tf.data.Dataset.from_tensor_slices(np.zeros(10)).batch(4)
    assert is_batched(dataset)
    assert is_batched(iter([]))
    assert not any(is_batched(a) for a in (np.zeros(3), {"a": np.zeros(3)}, [1, 2]))
    assert length(dataset) == 3
    assert length(dataset.repeat()) is None
    assert length(iter([])) is None


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.ones((6, 4), "int32"), r"shape \(6, 4\)"),
        (np.array([[0, 2, 1]] * 6), "one class an example"),
        (np.eye(3, dtype="float32")[np.ones((6, 4), int)], r"shape \(6, 4, 3\)"),
        ((np.zeros(6), np.ones(6)), "2 outputs"),
        ({"a": np.zeros(6), "b": np.ones(6)}, "2 outputs"),
    ],
    ids=["tokens", "tokens of three", "one-hot tokens", "pair", "dict"],
)
def test_class_weight_needs_one_class_an_example(labels, said):
    with pytest.raises(ValueError, match=f"{said}.*Pass sample_weight"):
        dp_train.PoissonLoader(
            np.ones((6, 2)), labels, batch_size=3, class_weight={0: 1.0, 1: 2.0}
        )


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 1],
        np.array([[0], [1], [1]]),
        np.eye(2)[[0, 1, 1]],
        np.eye(2, dtype=int)[[0, 1, 1]],
    ],
    ids=["list", "column", "one-hot", "one-hot integers"],
)
def test_class_weight_weights_one_class_an_example(labels):
    loader = dp_train.PoissonLoader(
        np.ones((3, 2)), labels, batch_size=3, class_weight={0: 1.0, 1: 5.0}
    )
    np.testing.assert_array_equal(loader.arrays[2], [1.0, 5.0, 5.0])
