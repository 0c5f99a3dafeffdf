"""The one place that touches private names of Keras and TensorFlow.

Every name below was tried on Keras 3.15.1 and TensorFlow 2.21.0; a new version of
either is tried here first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import masking
from keras.src.random import seed_generator
from keras.src.saving import object_registration
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.utils import tracking

untracked = tracking.no_automatic_dependency_tracking
"""Decorator: lists assigned inside the method stay plain lists."""


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """State variables of every seed generator in the model, and of the global one."""
    generators = [
        generator
        for layer in model._flatten_layers()
        for generator in layer._seed_generators
    ]
    generators.append(seed_generator.global_seed_generator())
    unique = {id(generator.state): generator.state for generator in generators}
    return list(unique.values())


def sublayers(model: keras.Model) -> list[keras.layers.Layer]:
    """Every layer inside the model, at any depth, without the model itself."""
    return list(model._flatten_layers(include_self=False))


def call_model(model: keras.Model, x: Any) -> Any:
    """The model in training mode, whether or not its call has that argument."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


@contextmanager
def without_regularization_losses(model: keras.Model) -> Iterator[None]:
    """Leaves weight regularisers out of `model.losses` inside the block.

    They read no data, so their gradient is added after the noise instead of being
    clipped with every example.
    """
    object.__setattr__(model, "_get_regularization_losses", list)
    try:
        yield
    finally:
        object.__delattr__(model, "_get_regularization_losses")


def regularization_losses(model: keras.Model) -> list[Any]:
    """Losses of the weight regularisers: functions of the weights only."""
    return list(model._get_regularization_losses())


def compute_loss(model: keras.Model, x: Any, y: Any, y_pred: Any, weight: Any) -> Any:
    """The model's own loss, also where `compute_loss` is overridden."""
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=weight, training=True
    )


def has_output_losses(model: keras.Model) -> bool:
    """Whether compile made a loss metric for each of several outputs."""
    return model._compile_loss is not None and bool(model._compile_loss.metrics)


def update_output_losses(model: keras.Model, y: Any, y_pred: Any, weight: Any) -> None:
    """Feeds the per-output loss metrics, which Keras does inside the loss."""
    model._compile_loss(y, y_pred, weight)


def loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """The metric shown as `loss`."""
    return model._loss_tracker


def losses(model: keras.Model) -> list[Any]:
    """Every loss object given to compile, flattened."""
    return [] if model.loss is None else keras.tree.flatten(model.loss)


def symbolic_build(model: keras.Model, x: Any, y: Any, sample_weight: Any) -> None:
    """Creates the variables of model, metrics and losses from a batch's shapes."""
    data = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    model._symbolic_build(data_batch=data if isinstance(data, tuple) else (data,))


def optimizer_of_build(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The trainable variables that the optimizer was built for."""
    return list(optimizer._trainable_variables)


def get_mask(tensor: Any) -> Any:
    """The Keras mask that travels with a tensor, or None."""
    return masking.get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Lets a Keras mask travel with a tensor."""
    masking.set_keras_mask(tensor, mask)


def alias_registration(alias: type, original: type) -> None:
    """Makes `alias` serialize under the name that `original` is registered by."""
    names = object_registration.GLOBAL_CUSTOM_NAMES
    if original in names:
        names[alias] = names[original]


def class_weight_to_sample_weight(y: Any, class_weight: dict[int, float]) -> Any:
    """[N] weights from class labels, as Keras computes them."""
    return data_adapter_utils.class_weight_to_sample_weights(y, class_weight)


def split_validation(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """(train, validation): the last part becomes validation data, as in Keras."""
    train, validation = array_slicing.train_validation_split(
        arrays, validation_split=validation_split
    )
    return train, validation


@contextmanager
def recorded_calls(model: keras.Model, calls: list[Any]) -> Iterator[None]:
    """Appends (layer, first rows of its outputs) for each call of a leaf layer."""
    leaves = [layer for layer in sublayers(model) if not layer._layers]

    def recording(layer: keras.layers.Layer, call: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            rows = [
                tf.cast(t[0], tf.float64).numpy() for t in keras.tree.flatten(outputs)
            ]
            calls.append((layer, rows))
            return outputs

        return wrapper

    for layer in leaves:
        object.__setattr__(layer, "call", recording(layer, layer.call))
    try:
        yield
    finally:
        for layer in leaves:
            object.__delattr__(layer, "call")


def is_trainable_state_changed(model: keras.Model) -> bool:
    """Whether `trainable` of any layer differs from what compile saw."""
    compiled = getattr(model, "_compiled_trainable_state", {})
    return any(
        layer.trainable != compiled.get(layer, layer.trainable)
        for layer in model._flatten_layers()
    )


@contextmanager
def without_converter_warnings() -> Iterator[None]:
    """Drops TensorFlow's notes to itself while it vectorizes ("... Fix that!")."""

    def is_for_users(record: logging.LogRecord) -> bool:
        return "uses a while_loop" not in record.getMessage()

    logger = tf.get_logger()
    logger.addFilter(is_for_users)
    try:
        yield
    finally:
        logger.removeFilter(is_for_users)
