"""Battery: the ledger goes wherever the weights go, and says what it does not know."""

from __future__ import annotations

import contextlib
import copy
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import dp_train
from tests.batteries.releases import (
    STEPS,
    PlannedError,
    RaiseAt,
    fit,
    rows,
    small_model,
)
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


def _checkpoint_of(
    part: Callable[[Any], dict[str, Any]], private_first: bool = True
) -> Callable[[Any, Path], Any]:
    def way(model: Any, folder: Path) -> Any:
        path = tf.train.Checkpoint(**part(model)).save(str(folder / "checkpoint"))
        fresh = small_model() if private_first else plain_model()
        if private_first:
            fresh.optimizer.build(fresh.trainable_variables)
        status = tf.train.Checkpoint(**part(fresh)).restore(path)
        if private_first:
            status.assert_consumed()
        status.assert_existing_objects_matched()
        return dp_train.make_private(fresh)

    return way


def _whole_weights_beside_shards(model: Any, folder: Path) -> Any:
    small_model().save_weights(folder / "1.weights.json", max_shard_size=1e-5)
    small_model().save_weights(folder / "1.weights.h5")
    return _weights_in_shards(model, folder)


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
    "checkpoint of weights": _checkpoint_of(lambda m: {"weights": m.weights}),
    "checkpoint of a layer": _checkpoint_of(lambda m: {"dense": m.layers[0]}),
    "checkpoint of a wrapper": _checkpoint_of(lambda m: {"outer": tf.Module(), "m": m}),
    "checkpoint into a plain model": _checkpoint_of(lambda m: {"m": m}, False),
    "weights in shards beside others": _whole_weights_beside_shards,
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


def _by_callback(hook: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        def assign(*given: Any, **logs: Any) -> None:
            del given, logs
            model.layers[0].kernel.assign(model.layers[0].kernel + 1)

        callback = keras.callbacks.LambdaCallback(**{hook: assign})
        fit(model, callback, steps=3)

    return change


def _plain_step_in_a_callback(model: Any) -> None:
    outer = keras.Sequential([keras.Input((3,)), model.layers[0]])
    outer.compile("sgd", loss="mse")
    outer.train_on_batch(*rows())
    step = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **logs: outer.train_on_batch(*rows())
    )
    fit(model, step, steps=3)


def _frozen_in_a_callback(model: Any) -> None:
    frozen = keras.layers.Dense(3, trainable=False)
    outer = private(
        keras.Sequential([keras.Input((3,)), frozen, *model.layers]),
        noise_multiplier=1.0,
    )
    assign = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: frozen.kernel.assign(frozen.kernel + 1)
    )
    fit(outer, assign, steps=3)


def _in_a_pipeline(model: Any) -> None:
    mean = tf.Variable(0.0)

    @keras.saving.register_keras_serializable(package="tests")
    class Shifted(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x - mean

    outer = private(
        keras.Sequential([keras.Input((3,)), Shifted(), *model.layers]),
        noise_multiplier=1.0,
    )

    def tell(x: Any, y: Any) -> Any:
        mean.assign(tf.reduce_mean(x))
        return x, y

    data = tf.data.Dataset.from_tensor_slices(rows()).batch(8, drop_remainder=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dp_train.PrivacyWarning)
        outer.fit(data.map(tell), verbose=0)


def _between_steps_of_a_loop(model: Any) -> None:
    x, y = (a[:4] for a in rows())
    for _ in range(2):
        clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
        model.optimizer.apply_clipped_sum(clipped)
        model.layers[0].bias.assign_add([1.0, 0.0])


def _after_a_checkpoint(model: Any) -> None:
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(str(Path(tempfile.mkdtemp()) / "checkpoint"))
    checkpoint.restore(path)
    _set_weights(model)


def _momentum_in_a_callback(model: Any) -> None:
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(
        dp_train.DPOptimizer(inner, l2_norm_clip=1.0, noise_multiplier=1.0), loss="mse"
    )

    def assign(*given: Any) -> None:
        del given
        for slot in model.optimizer.slots:
            slot.assign(slot + 1)

    with warnings.catch_warnings():
        # NumPy 2, of how Keras 3.15 compares optimizers.
        warnings.simplefilter("ignore", DeprecationWarning)
        fit(model, keras.callbacks.LambdaCallback(on_epoch_begin=assign), steps=2)


class _Looks(keras.callbacks.EarlyStopping):
    """Changes a weight where Keras asks it for a figure."""

    def get_monitor_value(self, logs: Any) -> Any:
        kernel = self.model.layers[0].kernel
        kernel.assign(kernel + 1)
        return super().get_monitor_value(logs)


def _in_a_subclass_that_restores(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dp_train.PrivacyWarning)
        fit(model, _Looks("loss", patience=9), steps=2, epochs=2)


class _Scales(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.scale


def _momentum_of_a_scalar(model: Any) -> None:
    outer = dp_train.make_private(
        keras.Sequential([keras.Input((3,)), *model.layers, _Scales()])
    )
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    outer.compile(
        dp_train.DPOptimizer(inner, l2_norm_clip=1.0, noise_multiplier=1.0), loss="mse"
    )

    def assign(*given: Any, **logs: Any) -> None:
        del given, logs
        for slot in outer.optimizer.slots:
            if len(slot.shape) == 0:
                slot.assign(slot + 1)

    step = keras.callbacks.LambdaCallback(on_train_batch_end=assign)
    fit(outer, step, steps=3)


def _frozen_in_a_loop(model: Any) -> None:
    frozen = keras.layers.Dense(3, trainable=False)
    outer = private(
        keras.Sequential([keras.Input((3,)), frozen, *model.layers]),
        noise_multiplier=1.0,
    )
    for _ in range(2):
        outer.train_on_batch(*(a[:4] for a in rows()))
        frozen.kernel.assign(frozen.kernel + 1)


def _frozen_and_put_back(model: Any) -> None:
    frozen = keras.layers.Dense(3, trainable=False)
    outer = private(
        keras.Sequential([keras.Input((3,)), frozen, *model.layers]),
        noise_multiplier=1.0,
    )

    def add(number: float) -> Callable[..., None]:
        return lambda *_: frozen.kernel.assign(frozen.kernel + number)

    there_and_back = keras.callbacks.LambdaCallback(
        on_epoch_begin=add(1.0), on_epoch_end=add(-1.0)
    )
    fit(outer, there_and_back, steps=2)


def _table_that_owes(model: Any) -> None:
    table = keras.layers.Embedding(1 << 13, 64)
    outer = dp_train.make_private(
        keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                table,
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(3),
                *model.layers,
            ]
        )
    )
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, noise_multiplier=1.0, lazy_noise=True
    )
    outer.compile(optimizer, loss="mse")
    x, y = rows()
    words = (x > 0).astype("int32")
    outer.fit(words, y, batch_size=4, verbose=0)
    assert any("owes" in note for note in outer.privacy_plan().notes)
    assert not statement(outer)[1], "Owed noise is reported as foreign."
    assign = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: table.embeddings.assign(table.embeddings + 1)
    )
    outer.fit(words, y, batch_size=4, verbose=0, callbacks=[assign])


def _before_the_next_batch(model: Any) -> None:
    _set_weights(model)
    model.train_on_batch(*(a[:4] for a in rows()))


CHANGES: dict[str, Callable[[Any], None]] = {
    "plain fit": _plain_fit,
    "plain fit between private ones": _plain_fit_between,
    "set_weights": _set_weights,
    "set_weights between batches": _before_the_next_batch,
    "in a loop of one's own": _between_steps_of_a_loop,
    "after a checkpoint": _after_a_checkpoint,
    "momentum": _momentum_in_a_callback,
    "momentum of a scalar": _momentum_of_a_scalar,
    "a subclass of EarlyStopping": _in_a_subclass_that_restores,
    "a frozen layer between batches": _frozen_in_a_loop,
    "a frozen layer, and back": _frozen_and_put_back,
    "a table that owes": _table_that_owes,
    "a layer that is frozen": _frozen_in_a_callback,
    "a pipeline": _in_a_pipeline,
    "a plain step in a callback": _plain_step_in_a_callback,
    **{
        hook: _by_callback(hook)
        for hook in (
            "on_train_begin",
            "on_epoch_end",
            "on_train_batch_begin",
            "on_train_batch_end",
            "on_train_end",
        )
    },
}


def _averaged() -> Any:
    model = dp_train.make_private(plain_model())
    inner = keras.optimizers.SGD(0.1, use_ema=True)
    model.compile(
        dp_train.DPOptimizer(inner, l2_norm_clip=1.0, noise_multiplier=1.0), loss="mse"
    )
    return model


def _drop_in() -> Any:
    model = plain_model()
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=8
    )
    model.compile(optimizer, loss="mse")
    return model


def _twice(build: Callable[[], Any], *callbacks: Any) -> Callable[[Path], Any]:
    def way(folder: Path) -> Any:
        del folder
        model = build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dp_train.PrivacyWarning)
            for _ in range(2):
                fit(model, *(callback() for callback in callbacks), steps=2, epochs=4)
        return dp_train.make_private(model)

    return way


def _best(folder: Path) -> Any:
    model = small_model()
    path = folder / "1.weights.h5"
    save = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    fit(model, save)
    model.load_weights(path)
    fit(model)
    return model


def _back_to_a_file(name: str) -> Callable[[Path], Any]:
    def way(folder: Path) -> Any:
        model = _averaged()
        fit(model, steps=2)
        path = folder / name
        checkpoint = tf.train.Checkpoint(model=model)
        if name == "checkpoint":
            path = checkpoint.save(str(path))
        else:
            model.save_weights(path)
        fit(model, steps=2)
        if name == "checkpoint":
            checkpoint.restore(path)
        else:
            model.load_weights(path)
        fit(model, steps=2)
        return model

    return way


def _restarted(folder: Path) -> Any:
    """Training that was stopped, and goes on in a model of another process."""
    for stopped in (True, False):
        model = _averaged()
        backup = keras.callbacks.BackupAndRestore(folder / "backup")
        stop = RaiseAt(PlannedError(), 1) if stopped else keras.callbacks.Callback()
        with contextlib.suppress(PlannedError):
            fit(model, backup, stop, steps=2, epochs=3)
    return model


def _early() -> Any:
    return keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=0, restore_best_weights=True
    )


def _average() -> Any:
    return keras.callbacks.SwapEMAWeights(swap_on_epoch=True)


NO_CHANGES: dict[str, Callable[[Path], Any]] = {
    "EarlyStopping": _twice(small_model, _early),
    "SwapEMAWeights": _twice(_averaged, _average),
    "averages in the end": _twice(_averaged, _early),
    "plain fit": _twice(_drop_in),
    "EarlyStopping in plain fit": _twice(_drop_in, _early),
    "a file that was saved": _best,
    "back to weights": _back_to_a_file("1.weights.h5"),
    "back to a checkpoint": _back_to_a_file("checkpoint"),
    "BackupAndRestore": _restarted,
}


def assert_no_change_is_reported(way: str, folder: Path) -> None:
    """What puts back earlier values of the training itself is no change elsewhere.

    Args:
        way: key of NO_CHANGES.
        folder: an empty folder.
    """
    model = NO_CHANGES[way](folder)
    text, is_said = statement(model)
    assert not is_said, f"{way} is reported as foreign:\n{text}"


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
