"""What cannot be private, why, and what to use instead.

The probes run the model on made-up inputs of the right shapes, never on private data.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dp_train import effects, host
from dp_train.errors import NotPrivateError, PrivacyWarning
from dp_train.gradients.alone import owner, recorded_spans
from dp_train.gradients.separation import ancestors
from dp_train.made_up import ROWS, made_up
from dp_train.sizes import named

_OWN_STEP = (
    "Move its loss into compute_loss, or write a custom loop with "
    "dp_train.clipped_gradients and optimizer.apply_clipped_sum."
)


def check_class(model: keras.Model) -> None:
    """Refuses models whose training step is not Keras's own.

    Raises:
        TypeError: not a Keras model.
        NotPrivateError: the model has its own train_step, which the private one would
            silently replace.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"make_private takes a keras.Model. Received: {type(model).__name__}. Only "
            "a model has a training step to make private. Wrap the layers in "
            "keras.Sequential or keras.Model first."
        )
    own = type(model).train_step is not keras.Model.train_step
    if own or "train_step" in vars(model):
        raise NotPrivateError(
            f"{type(model).__name__} has its own train_step. The private step would "
            f"replace it silently, and what it computes would be lost. {_OWN_STEP}"
        )


def check_train_step(model: keras.Model) -> None:
    """Refuses a private model that was given another training step.

    Raises:
        NotPrivateError: train_step was set on the model, or on the class that
            make_private made for it.
    """
    if "train_step" in vars(model) or "train_step" in vars(type(model)):
        raise NotPrivateError(
            f"train_step of {type(model).__name__} was set after make_private. It is "
            "given the examples, and what it does with them beside the private step "
            f"has no noise. Remove it (del model.train_step). {_OWN_STEP}"
        )


def check_precision(model: keras.Model, optimizer: Any) -> None:
    """Refuses dynamic loss scaling.

    Raises:
        NotPrivateError: mixed_float16 policy, or a LossScaleOptimizer.
    """
    policies = {layer.dtype_policy.name for layer in [model, *host.sublayers(model)]}
    if "mixed_float16" in policies or isinstance(
        optimizer, keras.optimizers.LossScaleOptimizer
    ):
        raise NotPrivateError(
            "The model uses the mixed_float16 policy or a LossScaleOptimizer. Dynamic "
            "loss scaling skips a step when a private gradient is not finite, and so "
            "releases that fact without noise. Use the mixed_bfloat16 policy."
        )


def check_recurrence(model: keras.Model) -> None:
    """Refuses recurrent layers that carry their state from batch to batch.

    Raises:
        NotPrivateError: a layer has stateful=True.
    """
    for layer in host.sublayers(model):
        if getattr(layer, "stateful", False) is True:
            raise NotPrivateError(
                f"Layer {layer.name!r} ({type(layer).__name__}) is stateful. It hands "
                "the state left by one example to another example of the next batch, "
                "so clipping no longer bounds what one example does. Build it with "
                "stateful=False."
            )


def check_state_updates(
    model: keras.Model, x: Any, y: Any, sample_weight: Any
) -> list[keras.Variable]:
    """Finds the state that a training step moves; only seeds and metrics may move.

    Traces the forward pass, the loss and the metrics without running them.

    Args:
        model: built.
        x, y, sample_weight: specs of a batch.

    Returns:
        State variables of the seed generators in use.

    Raises:
        NotPrivateError: a layer, the loss or a metric writes to other variables.
    """
    moved: set[int] = set()
    spans: list[Any] = []
    ends: list[Any] = []
    foreign_seeds: list[keras.Variable] = []

    @tf.function(autograph=False)
    def trace(x: Any, y: Any, sample_weight: Any) -> tf.Tensor:
        weights = [(v, tf.identity(v.value)) for v in model.trainable_variables]
        with (
            host.without_regularization_losses(model),
            keras.StatelessScope(weights, collect_losses=True) as scope,
        ):
            before = dict(scope.state_mapping)
            with host.recorded_seeds() as drawn:
                with recorded_spans(model) as recorded:
                    y_pred = host.call_model(model, x)
                loss = host.compute_loss(model, x, y, y_pred, sample_weight)
            spans[:], foreign_seeds[:] = recorded, drawn
            ends[:] = [tf.convert_to_tensor(loss), *scope.losses]
            model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        moved.update(
            identity
            for identity, value in scope.state_mapping.items()
            if value is not before.get(identity)
        )
        return tf.zeros([])

    graph = trace.get_concrete_function(x, y, sample_weight).graph
    known = host.seed_states(model)
    known += foreign_seeds
    seeds = list({id(v): v for v in known}.values())
    metrics = metric_variables(model)
    allowed = {id(v) for v in [*seeds, *metrics]}
    named = {id(v): v for v in model.variables}
    for identity in moved - allowed:
        if identity not in named:
            raise NotPrivateError(
                "The loss or a metric updates a variable of its own from the data "
                "during training. A later step may read it, and so that statistic "
                "would be released without noise. Keep losses free of state."
            )
        variable = named[identity]
        layer = _owner(model, variable)
        raise NotPrivateError(
            f"Layer {layer.name!r} ({type(layer).__name__}) writes to its weight "
            f"{variable.path!r} during training, beside the noised update. Only that "
            "update is accounted: a statistic of the data, written there, would be "
            f"released without noise. {_replacement(_writer(model, layer))}"
        )

    def what(effect: host.Effect) -> str:
        layer = owner(effect.op, spans)
        if layer is None:
            return "The loss, a metric or the model itself"
        return f"Layer {layer.name!r} ({type(layer).__name__})"

    effects.check(
        graph.get_operations(),
        what=what,
        may_not_read=metrics,
        readers=ancestors(map(tf.convert_to_tensor, ends)),
    )
    return [state for state in seeds if id(state) in moved]


def metric_variables(model: keras.Model) -> list[keras.Variable]:
    """What metrics write: not the weights of the model that they may hold."""
    weights = {id(v) for v in model.weights}
    weights |= {id(v) for layer in host.sublayers(model) for v in layer.weights}
    return [v for v in model.metrics_variables if id(v) not in weights]


def check_examples_are_separate(model: keras.Model, x: Any) -> None:
    """Refuses models in which one example's output depends on another example.

    Calls the model twice with equal weights, equal random seeds and equal first rows;
    only the other rows differ. The first output must not notice.

    Raises:
        NotPrivateError: it does, or it is another at every call; the layer is named
            where it can be found.
    """
    first, second = made_up(x), made_up(x, changed_rows=True)
    if _complex(x):
        raise NotPrivateError(
            f"The model takes complex inputs: {_complex(x)}. Whether its layers keep "
            "examples apart is checked, and gradients are clipped, for real numbers "
            "only. Pass real and imaginary parts as two real inputs, as "
            "np.stack([x.real, x.imag], axis=-1), and make complex numbers of them "
            "inside the model (tf.complex)."
        )
    if first is None:
        raise NotPrivateError(
            f"The model takes inputs that are not numbers: {_not_numbers(x)}. Whether "
            "its layers keep examples apart cannot be checked on made-up inputs. Move "
            "the look-up or vectorisation layer out of the model, into the data "
            "(dataset.map, or its output as an array)."
        )
    try:
        outputs = _outputs(model, first)
    except (ValueError, tf.errors.OpError) as error:
        raise NotPrivateError(
            f"The model fails on a made-up batch of {ROWS} rows: {error}. Poisson "
            "batches have any number of rows, and a layer that needs a certain number "
            "mixes examples. Replace that layer by one that treats every example by "
            "itself."
        ) from error
    drawing: list[keras.layers.Layer] = []
    with host.recorded_python_draws(model, drawing):
        again = _outputs(model, first)
    if drawing:
        raise _of_python_draw(drawing[0])
    if not _same(outputs, again):
        # An unseeded random layer: nothing can be concluded here. The engine that runs
        # whole batches needs a proof on the graph anyway (gradients/separation.py).
        return
    if _same(outputs, _outputs(model, second)):
        return
    layer = _mixing_layer(model, first, second)
    named = (
        f"Layer {layer.name!r} ({type(layer).__name__})"
        if layer is not None
        else f"Model {model.name!r}"
    )
    raise NotPrivateError(
        f"{named} mixes examples: the output for one example changes with the other "
        "examples in the batch. Clipping bounds an example's own gradient only if its "
        f"loss is its own. {_replacement(layer)}"
    )


def _of_python_draw(layer: keras.layers.Layer) -> NotPrivateError:
    return NotPrivateError(
        f"Layer {layer.name!r} ({type(layer).__name__}) draws by Python's or NumPy's "
        "generators when it is called. Every trace of it is another function then, and "
        "what was checked of one holds of no other. Draw by keras.random with a "
        "keras.random.SeedGenerator, or change the examples one by one: "
        "fit(augment=...) or PoissonLoader(augment=...)."
    )


def _not_numbers(x: Any) -> str:
    """Names and dtypes of the inputs that are not numbers."""
    dtypes = [(name, tf.as_dtype(t.dtype)) for name, t in named((x, None, None))]
    return ", ".join(
        f"{name} ({dtype.name})"
        for name, dtype in dtypes
        if not (dtype.is_floating or dtype.is_integer or dtype.is_bool)
    )


def _complex(x: Any) -> str:
    """Names and dtypes of the inputs that are complex numbers."""
    dtypes = [(name, tf.as_dtype(t.dtype)) for name, t in named((x, None, None))]
    return ", ".join(f"{name} ({d.name})" for name, d in dtypes if d.is_complex)


def _writer(model: keras.Model, owner: keras.layers.Layer) -> keras.layers.Layer:
    """Who writes to a layer's weights: the layer, or one that normalises them."""
    for layer in host.sublayers(model):
        wraps = isinstance(layer, keras.layers.SpectralNormalization)
        if wraps and layer.layer is owner:
            return layer
    return owner


def _replacement(layer: keras.layers.Layer | None) -> str:
    """What to use instead of a layer that cannot be private."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return (
            "Replace BatchNormalization by keras.layers.GroupNormalization or "
            "LayerNormalization, or freeze it with trainable=False before compile."
        )
    if isinstance(layer, keras.layers.SpectralNormalization):
        return (
            "Replace SpectralNormalization by a kernel_constraint, as "
            "keras.constraints.MaxNorm, which acts on noised weights; or use the layer "
            "that it wraps as it is."
        )
    return (
        "Freeze it with trainable=False if that stops it, or replace it by a layer "
        "that treats every example by itself."
    )


def _call(model: keras.Model, x: Any, mapping: list[Any]) -> tuple[Any, Any]:
    """(outputs, scope) of one training call that changes nothing."""
    with keras.StatelessScope(mapping, collect_losses=True) as scope:
        outputs = host.call_model(model, x)
    return outputs, scope


def _outputs(model: keras.Model, x: Any) -> list[Any]:
    """First rows of the outputs, with shaken weights and pinned seeds.

    Weights are shaken, since a zero-initialised head hides what lies before it.
    """
    generator = np.random.default_rng(3)
    mapping = [
        (
            v,
            tf.convert_to_tensor(v.value)
            + tf.cast(0.1 * generator.standard_normal(v.shape), v.dtype),
        )
        for v in model.trainable_variables
    ]
    mapping += [
        (s, tf.constant([7, 7 + i], s.dtype))
        for i, s in enumerate(host.seed_states(model))
    ]
    outputs, _ = _call(model, x, mapping)
    return [
        tf.cast(t[0], tf.float64).numpy()
        for t in keras.tree.flatten(outputs)
        if t is not None
    ]


def _same(a: list[Any], b: list[Any]) -> bool:
    """Equal shapes take equal kernels: only the last digits may differ."""
    return all(
        np.allclose(s, t, rtol=1e-5, atol=1e-6, equal_nan=True)
        for s, t in zip(a, b, strict=True)
    )


def _owner(model: keras.Model, variable: keras.Variable) -> keras.layers.Layer:
    """The innermost layer that owns a variable."""
    owners = [
        layer
        for layer in [model, *host.sublayers(model)]
        if any(v is variable for v in layer.variables)
    ]
    return min(owners, key=lambda layer: len(layer.variables), default=model)


def _mixing_layer(
    model: keras.Model, first: Any, second: Any
) -> keras.layers.Layer | None:
    """The first layer, in order of calls, whose own output row 0 differs."""
    recorded: list[list[tuple[keras.layers.Layer, Any]]] = []
    for x in (first, second):
        calls: list[tuple[keras.layers.Layer, Any]] = []
        with host.recorded_calls(model, calls):
            _outputs(model, x)
        recorded.append(calls)
    for (layer, a), (_, b) in zip(*recorded, strict=False):
        if not _same(a, b):
            return layer
    return None


def warn_of_large_delta(delta: float | None, population: int | None) -> None:
    """Warns where delta allows to publish whole examples."""
    if delta is not None and population is not None and delta >= 1 / population:
        warnings.warn(
            f"delta={delta:g} is not below 1 / {population}, one over the number of "
            "examples. A method that publishes one example at random could meet it. "
            "Choose a delta well below that.",
            PrivacyWarning,
            stacklevel=4,
        )


def warn_of_changes_elsewhere() -> None:
    """Warns of weights that are not what the last recorded release left."""
    warnings.warn(
        "The weights were changed by something that the ledger does not know: a plain "
        "fit, set_weights, or a file that carries no ledger. What they learned there "
        "is not in this report. Report on a model as its last private fit left it, or "
        "take into account what else it has seen.",
        PrivacyWarning,
        stacklevel=3,
    )
