"""TensorFlow Privacy on one model: prints medians as JSON. Run by peer_ratio.py.

    python benchmarks/peers/run_tf_privacy.py MODEL MODE --rounds 9

Plain and private train through Keras 2's fit. The modes:

    fast, fast-xla     DPModel with its layer registry: norms by a second pass
    model              DPModel without registry: a vectorized map over examples
    vectorized         VectorizedDPKeras*Optimizer: the Jacobian of the losses
    loop               DPKeras*Optimizer with one microbatch an example
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402
import tensorflow_privacy as tfp  # noqa: E402
from tensorflow_privacy.privacy.fast_gradient_clipping import (  # noqa: E402
    layer_registry,
)
from tensorflow_privacy.privacy.fast_gradient_clipping.registry_functions import (  # noqa: E402, E501
    layer_normalization,
    multi_head_attention,
)

from benchmarks import measure  # noqa: E402
from benchmarks.models import CASES  # noqa: E402

keras = tf.keras
MODES = ("fast", "fast-xla", "model", "vectorized", "loop")
PLAIN = ("plain", "plain XLA")
CLIP, NOISE_MULTIPLIER = 1.0, 1.1


def positions(layer: Any, args: Any, kwargs: Any, tape: Any, microbatches: Any = None):
    """Registry function for the benchmark's own layer: one copy of the table a row."""
    copies = tf.tile(layer.table[None], [tf.shape(args[0])[0], 1, 1])
    tape.watch(copies)
    return copies, args[0] + copies, lambda g: tf.reduce_sum(g**2, axis=[1, 2])


def registry(model: Any) -> Any:
    """The functions that the package has, also those that it does not list itself."""
    known = layer_registry.make_default_layer_registry()
    layers = keras.layers
    known.insert(
        layers.LayerNormalization, layer_normalization.layer_normalization_computation
    )
    known.insert(
        layers.MultiHeadAttention,
        multi_head_attention.multi_head_attention_layer_computation,
    )
    for layer in model.layers:
        if type(layer).__name__ == "Positions":
            known.insert(type(layer), positions)
    return known


def optimizer(case: Any) -> Any:
    """A plain optimizer."""
    classes = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
    return classes[case.optimizer](1e-3)


def compiled(case: Any, mode: str) -> Any:
    """The model of a case, trained in a mode."""
    losses = keras.losses.SparseCategoricalCrossentropy
    model = case.build(keras)
    if mode in PLAIN:
        loss = losses(from_logits=True)
        model.compile(optimizer(case), loss=loss, jit_compile=mode == "plain XLA")
    elif mode in ("fast", "fast-xla", "model"):
        known = None if mode == "model" else registry(model)
        private = tfp.DPModel(
            l2_norm_clip=CLIP,
            noise_multiplier=NOISE_MULTIPLIER,
            use_xla=mode == "fast-xla",
            layer_registry=known,
            inputs=model.inputs,
            outputs=model.outputs,
        )
        if known is not None and not private._enable_fast_peg_computation:
            names = {
                type(layer).__name__
                for layer in model.layers
                if layer.trainable_variables and not known.is_elem(layer)
            }
            raise SystemExit(f"NotAvailableError: no fast rule for {sorted(names)}")
        private.compile(optimizer(case), loss=losses(from_logits=True))
        model = private
    else:
        names = {"sgd": "KerasSGDOptimizer", "adam": "KerasAdamOptimizer"}
        prefix = "VectorizedDP" if mode == "vectorized" else "DP"
        private = getattr(tfp, prefix + names[case.optimizer])(
            l2_norm_clip=CLIP,
            noise_multiplier=NOISE_MULTIPLIER,
            num_microbatches=case.batch_size,
            learning_rate=1e-3,
        )
        loss = losses(from_logits=True, reduction=keras.losses.Reduction.NONE)
        model.compile(private, loss=loss)
    return model


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=CASES)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    case = CASES[options.model]
    x, y = case.data(case.steps * case.batch_size)

    def block_of(model: Any) -> measure.Block:
        def block(steps: int) -> measure.Times:
            clocks: list[measure.Clock] = []
            times: list[measure.Times] = []
            timer = keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: clocks.append(measure.Clock()),
                on_epoch_end=lambda epoch, logs: times.append(
                    clocks[-1].milliseconds(steps)
                ),
            )
            rows = steps * case.batch_size
            model.fit(
                x[:rows],
                y[:rows],
                batch_size=case.batch_size,
                verbose=0,
                callbacks=[timer],
            )
            return times[0]

        return block

    blocks = {mode: block_of(compiled(case, mode)) for mode in (*PLAIN, options.mode)}
    found = measure.race(blocks, PLAIN, case.steps, options.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
