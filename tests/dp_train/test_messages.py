"""Mistakes that people make are answered with their reason and a way out."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import CLASSES, FEATURES, compiled, data

import dp_train

NUMBERS = np.arange(12.0).reshape(6, 2)


def test_microbatches_of_tensorflow_privacy_are_not_needed():
    with pytest.raises(TypeError, match=r"num_microbatches.*Leave it out.*microbatch_"):
        dp_train.DPAdam(
            0.1, l2_norm_clip=1.0, noise_multiplier=1.0, num_microbatches=32
        )


@pytest.mark.parametrize("size", ["8", True, None, [8]])
def test_batch_size_is_a_number(size):
    with pytest.raises(ValueError, match=r"batch_size must be a number. Received: "):
        dp_train.PoissonLoader(NUMBERS, batch_size=size)


def test_any_number_is_a_batch_size():
    for size in (2, 2.5, np.int64(2), np.float32(2.0)):
        loader = dp_train.PoissonLoader(NUMBERS, batch_size=size)
        assert loader.sampling.expected_batch_size == size


def test_clipped_sums_are_not_added():
    model = compiled()
    x, y = data()
    parts = [
        dp_train.clipped_gradients(model, x[rows], y[rows], l2_norm_clip=1.0)
        for rows in (slice(0, 5), slice(5, 10))
    ]
    with pytest.raises(TypeError, match=r"to ClippedSum\. It pays.*microbatch_size"):
        parts[0] + parts[1]
    with pytest.raises(TypeError, match="whole batch"):
        sum(parts)


@pytest.mark.parametrize(
    ("x", "name"),
    [
        ({"age": NUMBERS, "city": np.array(["a"] * 6)}, r"x\['city'\].*dtype <U1"),
        ([NUMBERS, np.array([None] * 6)], r"x\[1\].*dtype object"),
        (np.array(["2020-01-01"] * 6, "datetime64[D]"), r"x is no array.*datetime64"),
    ],
    ids=["text", "objects", "dates"],
)
def test_what_is_not_a_number_is_named_by_its_column(x, name):
    with pytest.raises(ValueError, match=rf"{name}.*StringLookup with a vocabulary"):
        dp_train.PoissonLoader(x, batch_size=2)


class Table:
    """As much of a data frame as counts: named columns, and an array of all."""

    def __init__(self, **columns):
        self.contents = columns
        self.columns = list(columns)
        self.dtypes = [np.asarray(c).dtype for c in columns.values()]

    def __getitem__(self, column):
        return self.contents[column]

    def __array__(self, dtype=None, copy=None):
        return np.stack([np.asarray(c) for c in self.contents.values()], axis=1)


def test_a_table_with_text_names_the_column():
    table = Table(age=np.arange(6.0), city=np.array(["a"] * 6, object))
    with pytest.raises(ValueError, match=r"x\['city'\] is no array of numbers"):
        dp_train.PoissonLoader(table, batch_size=2)
    table = Table(age=np.arange(6.0), height=np.ones(6))
    assert dp_train.PoissonLoader(table, batch_size=2).arrays[0].shape == (6, 2)


def test_a_list_of_examples_is_told_to_be_stacked():
    with pytest.raises(ValueError, match=r"np\.stack\(examples\)"):
        dp_train.PoissonLoader(list(NUMBERS), list(NUMBERS[:, 0]), batch_size=2)


def test_text_in_a_dataset_is_named():
    inputs = {
        "age": keras.Input((1,), name="age"),
        "city": keras.Input((1,), name="city", dtype="string"),
    }
    found = keras.layers.StringLookup(vocabulary=["a"], output_mode="one_hot")
    joined = keras.layers.Concatenate()([inputs["age"], found(inputs["city"])])
    model = compiled(keras.Model(inputs, keras.layers.Dense(CLASSES)(joined)))
    x = {"age": tf.ones([2, 1]), "city": tf.constant([["a"], ["b"]])}
    dataset = tf.data.Dataset.from_tensors((x, [0, 1]))
    with pytest.raises(dp_train.NotPrivateError, match=r"numbers: x\['city'\] \(str"):
        model.fit(dataset, verbose=0)


def test_examples_without_a_gradient_are_counted():
    x, y = data()
    x[3, 1], x[7, 0], x[7, 2] = np.nan, np.inf, -np.inf
    weight = np.ones(len(x))
    weight[9] = np.nan
    with pytest.warns(UserWarning, match="3 of 60 examples hold NaN or infinity"):
        compiled().fit(x, y, sample_weight=weight, batch_size=6, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dp_train.PoissonLoader(np.full((4, 2), 3e38, "float32"), batch_size=2)
        dp_train.PoissonLoader(np.ones((4, 2), bool), batch_size=2)


def test_spectral_normalization_is_told_what_replaces_it():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(CLASSES))
    model = compiled(keras.Sequential([keras.Input((FEATURES,)), layer]))
    with pytest.raises(
        dp_train.NotPrivateError, match=r"beside the noised.*kernel_constraint"
    ):
        model.fit(*data(), verbose=0)


def test_what_replaces_it_trains():
    layer = keras.layers.Dense(CLASSES, kernel_constraint=keras.constraints.MaxNorm(1))
    model = compiled(keras.Sequential([keras.Input((FEATURES,)), layer]))
    model.fit(*data(), verbose=0)
    norms = np.linalg.norm(model.get_weights()[0], axis=0)
    assert np.all(norms <= 1 + 1e-5)
