"""Battery: the ledger goes wherever the weights go, and says what it does not know."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import dp_train
from tests.batteries.releases import STEPS, fit, rows, small_model
from tests.batteries.training import private


def _whole_file(name: str, **options: Any) -> Callable[[Any, Path], Any]:
    def way(model: Any, folder: Path) -> Any:
        model.save(folder / name)
        loaded = keras.models.load_model(folder / name, **options)
        return dp_train.make_private(loaded)

    return way


def _folder(model: Any, folder: Path) -> Any:
    model.save(folder / "model", zipped=False)
    return dp_train.make_private(keras.models.load_model(folder / "model"))


def _weights_before_compile(model: Any, folder: Path) -> Any:
    model.save_weights(folder / "1.weights.h5")
    fresh = dp_train.make_private(plain_model())
    fresh.load_weights(folder / "1.weights.h5")
    return fresh


def _weights_in_shards(model: Any, folder: Path) -> Any:
    model.save_weights(folder / "1.weights.json", max_shard_size=1e-5)
    fresh = small_model()
    fresh.load_weights(folder / "1.weights.json")
    return fresh


def _weights_into_a_plain_model(model: Any, folder: Path) -> Any:
    model.save_weights(folder / "1.weights.h5")
    fresh = plain_model()
    fresh.load_weights(folder / "1.weights.h5")
    return dp_train.make_private(fresh)


def _weights_of_hdf5(model: Any, folder: Path) -> Any:
    model.save(folder / "model.h5")
    fresh = dp_train.make_private(plain_model())
    fresh.load_weights(folder / "model.h5")
    return fresh


def _keras_after_hdf5(model: Any, folder: Path) -> Any:
    model.save(folder / "best.h5")
    return _whole_file("final.keras")(model, folder)


def _without_dp_optimizer(model: Any, folder: Path) -> Any:
    with warnings.catch_warnings():
        # NumPy 2, of how Keras 3.15 compares optimizers.
        warnings.simplefilter("ignore", DeprecationWarning)
        model.compile("adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    return _whole_file("model.keras")(model, folder)


def _checkpoint(model: Any, folder: Path) -> Any:
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(
        str(folder / "checkpoint")
    )
    fresh = small_model()
    fresh.optimizer.build(fresh.trainable_variables)
    kept = tf.train.Checkpoint(model=fresh, optimizer=fresh.optimizer)
    kept.restore(path).assert_consumed()
    return fresh


def _checkpoint_without_optimizer(model: Any, folder: Path) -> Any:
    path = tf.train.Checkpoint(net=model).write(str(folder / "checkpoint"))
    fresh = dp_train.make_private(plain_model())
    tf.train.Checkpoint(net=fresh).read(path).assert_existing_objects_matched()
    return fresh


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    ".keras": _whole_file("model.keras"),
    ".keras, not compiled": _whole_file("model.keras", compile=False),
    "folder": _folder,
    ".h5": _whole_file("model.h5"),
    ".h5, not compiled": _whole_file("model.h5", compile=False),
    ".keras after .h5": _keras_after_hdf5,
    "compiled with another optimizer": _without_dp_optimizer,
    "weights before compile": _weights_before_compile,
    "weights in shards": _weights_in_shards,
    "weights into a plain model": _weights_into_a_plain_model,
    "weights of .h5": _weights_of_hdf5,
    "checkpoint": _checkpoint,
    "checkpoint without optimizer": _checkpoint_without_optimizer,
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, _: copy.deepcopy(model),
}


def plain_model() -> keras.Model:
    """What small_model makes private."""
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


def assert_the_ledger_follows_the_weights(way: str, folder: Path) -> None:
    """Whoever has the weights, by this way, has the ledger.

    Args:
        way: key of WAYS.
        folder: an empty folder.
    """
    # By name, Keras 3.15 cannot load a loss from HDF5.
    model = small_model(loss=keras.losses.MeanSquaredError())
    fit(model)
    there = WAYS[way](model, folder)
    for a, b in zip(model.get_weights(), there.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    charged = there.privacy_ledger.total
    assert charged == STEPS, (
        f"{STEPS} releases made these weights; by {way} came {charged}."
    )


def around(layer: keras.layers.Layer, **options: Any) -> Any:
    """A private model with the layer and a head of its own."""
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(2)])
    return private(model, noise_multiplier=1.0, **options)


def assert_models_that_share_a_weight_have_one_ledger(kind: str) -> None:
    """All of them count the releases of each, in whatever order they were made.

    Args:
        kind: "layer", "private model" or "frozen layer" that they share.
    """
    shared = keras.layers.Dense(3)
    if kind == "private model":
        inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        shared = dp_train.make_private(inner)
    first = around(shared)
    fit(first, steps=1)
    if kind == "frozen layer":
        shared.trainable = False
    second = around(shared)
    fit(second, steps=2)
    if kind != "frozen layer":
        fit(first, steps=4)
    made = 3 if kind == "frozen layer" else 7
    models = [first, second] + [shared] * (kind == "private model")
    charged = [model.privacy_ledger.total for model in models]
    assert charged == [made] * len(models), (
        f"{made} releases moved weights beside the shared one, and {charged} are "
        "counted."
    )


def _plain_fit(model: Any) -> None:
    outer = keras.Sequential([keras.Input((3,)), model])
    outer.compile("sgd", loss="mse")
    outer.fit(*rows(), verbose=0)


def _set_weights(model: Any) -> None:
    model.set_weights([w + 1 for w in model.get_weights()])


def _plain_fit_between(model: Any) -> None:
    _plain_fit(model)
    fit(model, steps=1)


CHANGES: dict[str, Callable[[Any], None]] = {
    "plain fit": _plain_fit,
    "plain fit between private ones": _plain_fit_between,
    "set_weights": _set_weights,
}


def statement(model: Any) -> tuple[str, bool]:
    """(report, whether it says that weights were changed elsewhere)."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The weights were changed", dp_train.PrivacyWarning
        )
        report = model.privacy_report(1e-5)
    ids = [caveat.id for caveat in report.caveats]
    return str(report), "changed_elsewhere" in ids


def assert_changes_elsewhere_are_in_the_report(change: str) -> None:
    """A report of weights that something else moved says so, and only then.

    Args:
        change: key of CHANGES.
    """
    model = small_model()
    fit(model, steps=2)
    x, y = (a[:4] for a in rows())
    model.train_on_batch(x, y)
    clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
    model.optimizer.apply_clipped_sum(clipped)
    assert not statement(model)[1], "Releases of its own are reported as foreign."
    CHANGES[change](model)
    text, is_said = statement(model)
    assert is_said, f"{change} is not in the report:\n{text}"


def assert_an_assigned_optimizer_adds_its_own_noise() -> None:
    """Without compile, too, fit trains and charges with the optimizer that is there."""
    model = small_model()
    fit(model, steps=2)
    target = model.privacy_report(1e-5).epsilon.upper + 0.01
    model.optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, target_epsilon=target, target_delta=1e-5
    )
    fit(model, steps=10)
    reached = model.privacy_report(1e-5).epsilon.upper
    assert reached <= target, (
        f"The target was {target:.3f}, and {reached:.3f} was spent: the step went on "
        "with the optimizer before."
    )
