"""Battery: nothing leaves or steers a step but by the clipped sum and its noise."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import function

import dp_train

ROWS, FEATURES = 8, 4
PATHS = ("fit", "eager fit", "vectorized", "loop", "custom loop", "plain fit")


class Keeps(keras.layers.Layer):
    """Keeps the mean of its inputs, in training, by one of several hidden ways."""

    def __init__(self, way: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.way = way
        self.mean = tf.Variable(tf.zeros([FEATURES]), trainable=False)
        if way == "queue":
            self.queue = tf.queue.FIFOQueue(100, [tf.float32], [[FEATURES]])
        if way == "table":
            self.table = tf.lookup.experimental.MutableHashTable(
                tf.int64, tf.float32, tf.zeros([FEATURES])
            )

    def call(self, x: Any, training: Any = None) -> Any:
        if training:
            mean = tf.reduce_mean(x, 0)
            if self.way == "py_function":
                tf.py_function(lambda m: self.mean.assign(m), [mean], tf.float32)
            elif self.way == "numpy_function":
                tf.numpy_function(lambda m: self._kept(m[None]), [mean], tf.float32)
            elif self.way == "numpy_function without a state":
                same = tf.numpy_function(self._kept, [x], tf.float32, stateful=False)
                x = tf.ensure_shape(same, x.shape)
            elif self.way == "queue":
                self.queue.enqueue(mean)
            elif self.way == "table":
                self.table.insert(tf.constant([0], tf.int64), mean[None])
            elif self.way == "branch":
                tf.cond(
                    tf.reduce_sum(mean) > 0,
                    lambda: tf.identity(self.mean.assign(mean)),
                    lambda: mean,
                )
            elif self.way == "function called by its type":
                write = function.Defun(tf.resource, tf.float32)(_written)
                kept = write(self.mean.handle, mean)
                x = x + tf.ensure_shape(kept, [FEATURES])
            elif self.way == "memory that is not written":
                held = tf.raw_ops.Empty(shape=[FEATURES], dtype=tf.float32, init=False)
                x = x + held
            elif self.way == "memory in place":
                held = tf.raw_ops.Empty(shape=[1, FEATURES], dtype=tf.float32)
                x = x + tf.raw_ops.InplaceUpdate(x=held, i=[0], v=mean[None])
            elif self.way == "debugger":
                url = f"file://{tempfile.gettempdir()}/dp_train_dump"
                tf.raw_ops.DebugIdentity(input=mean, tensor_name="t", debug_urls=[url])
        return x

    def _kept(self, x: Any) -> Any:
        self.mean.assign(x.mean(0))
        return x


def _written(handle: Any, mean: Any) -> Any:
    tf.raw_ops.AssignVariableOp(resource=handle, value=mean)
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)


WAYS = (
    "py_function",
    "numpy_function",
    "numpy_function without a state",
    "queue",
    "table",
    "branch",
    "function called by its type",
    "memory that is not written",
    "memory in place",
    "debugger",
)


class Remembers(keras.layers.Layer):
    """Keeps a tensor of its inputs for each graph, for others to read."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "kept", {})

    def call(self, x: Any) -> Any:
        self.kept[tf.compat.v1.get_default_graph()] = tf.reduce_mean(x)
        return x

    @property
    def last(self) -> Any:
        """Of this graph, or of the one around it."""
        graph: Any = tf.compat.v1.get_default_graph()
        while graph not in self.kept and hasattr(graph, "outer_graph"):
            graph = graph.outer_graph
        return self.kept.get(graph, 0.0)


def _row_mean_read_by(reader: str) -> tuple[keras.Model, Any]:
    """(model, learning rate): a mean of the rows is read behind the clip."""
    layer = Remembers()

    def penalty(weight: Any) -> Any:
        return keras.ops.sum(weight) * layer.last

    def constraint(weight: Any) -> Any:
        return weight + layer.last

    class Rate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return layer.last

        def get_config(self) -> dict[str, Any]:
            return {}

    dense = keras.layers.Dense(
        1,
        kernel_regularizer=penalty if reader == "regularizer" else None,
        kernel_constraint=constraint if reader == "constraint" else None,
    )
    model = keras.Sequential([keras.Input((FEATURES,)), layer, dense])
    return model, Rate() if reader == "schedule" else 0.1


KEEPERS = ("regularizer", "constraint", "schedule")


class _ReadingRate(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def __call__(self, step: Any) -> Any:
        return 0.1 + 0.0 * self.metric.result()

    def get_config(self) -> dict[str, Any]:
        return {}


class _ReadingLayer(keras.layers.Layer):
    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.read = metric.result

    def call(self, x: Any) -> Any:
        return x * (1.0 + 0.0 * self.read())


def _metric_read_by(reader: str, metric: Any) -> tuple[keras.Model, Any, Any]:
    """(model, loss, learning rate), one of which reads the metric."""

    def penalty(weight: Any) -> Any:
        return keras.ops.sum(weight) * metric.result()

    def constraint(weight: Any) -> Any:
        return weight * (1.0 + 0.0 * metric.result())

    def loss(y_true: Any, y_pred: Any) -> Any:
        error = keras.ops.mean(keras.ops.square(y_true - y_pred), -1)
        return error * (1.0 + 0.0 * metric.result()) if reader == "loss" else error

    dense = keras.layers.Dense(
        1,
        kernel_regularizer=penalty if reader == "regularizer" else None,
        kernel_constraint=constraint if reader == "constraint" else None,
    )
    layers = [_ReadingLayer(metric)] if reader == "layer" else []
    rate = _ReadingRate(metric) if reader == "schedule" else 0.1
    return keras.Sequential([keras.Input((FEATURES,)), *layers, dense]), loss, rate


READERS = ("layer", "loss", "regularizer", "constraint", "schedule")


def _train(path: str, model: keras.Model, loss: Any, rate: Any, metric: Any) -> None:
    """One step of a model, on one of PATHS."""
    x = np.ones((ROWS, FEATURES), np.float32)
    y = np.ones((ROWS, 1), np.float32)
    optimizer = dp_train.DPSGD(
        rate, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=ROWS
    )
    metrics = [] if metric is None else [metric]
    if path == "plain fit":
        model.compile(optimizer, loss, metrics=metrics)
        model.fit(tf.data.Dataset.from_tensors((x, y)), shuffle=False, verbose=0)
        return
    engine = path if path in ("vectorized", "loop") else "auto"
    model = dp_train.make_private(model, gradients=engine)
    model.compile(optimizer, loss, metrics=metrics, run_eagerly=path == "eager fit")
    if path == "custom loop":
        clipped = dp_train.clipped_gradients(model, x, y, l2_norm_clip=1.0)
        optimizer.apply_clipped_sum(clipped, model.trainable_variables)
        return
    model.fit(x, y, batch_size=ROWS, verbose=0)


def _assert_refused(train: Callable[[], None], complaint: str) -> None:
    try:
        train()
    except dp_train.NotPrivateError:
        return
    raise AssertionError(complaint)


def assert_no_state_is_kept_on_the_side(path: str, way: str) -> None:
    """A layer that keeps a statistic of the rows is refused, however it keeps it."""
    model = keras.Sequential(
        [keras.Input((FEATURES,)), Keeps(way), keras.layers.Dense(1)]
    )
    _assert_refused(
        lambda: _train(path, model, "mse", 0.1, None),
        f"{path}: a mean of the rows was kept by {way}, without noise.",
    )


def assert_metrics_steer_nothing(path: str, reader: str) -> None:
    """What a metric wrote about the rows is read by no part of the next update."""
    metric = keras.metrics.MeanSquaredError(name="watched")
    model, loss, rate = _metric_read_by(reader, metric)
    _assert_refused(
        lambda: _train(path, model, loss, rate, metric),
        f"{path}: the {reader} read a metric of the rows.",
    )


def assert_rows_steer_nothing_behind_the_clip(path: str, reader: str) -> None:
    """A tensor of the rows that a layer kept is read by no part of the update."""
    model, rate = _row_mean_read_by(reader)
    _assert_refused(
        lambda: _train(path, model, "mse", rate, None),
        f"{path}: the {reader} read a mean of the rows.",
    )
