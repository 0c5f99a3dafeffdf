"""JAX-Privacy on one model: prints medians as JSON. Run by peer_ratio.py.

    python benchmarks/peers/run_jax_privacy.py MODEL vmap|microbatched --rounds 9

The models are Keras's on the JAX backend. Both steps are one compiled function on
batches of a fixed size, drawn by index; the private one clips with
jax_privacy.clipped_grad and adds noise with its gaussian_privatizer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
os.environ["KERAS_BACKEND"] = "jax"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax_privacy  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from benchmarks import measure  # noqa: E402
from benchmarks.models import CASES  # noqa: E402

MODES = ("vmap", "microbatched")
CLIP, NOISE_MULTIPLIER, CHUNKS = 1.0, 1.1, 8


def chunk(batch_size: int) -> int:
    """Rows of a microbatch: the largest divisor that makes about eight of them."""
    return max(n for n in range(1, batch_size // CHUNKS + 1) if batch_size % n == 0)


def steps_of(case: Any, mode: str) -> dict[str, Any]:
    """(compiled step, its state) of plain and private training."""
    model = case.build(keras)
    weights = [jnp.array(v.value) for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]
    optimizer = {"sgd": optax.sgd, "adam": optax.adam}[case.optimizer](1e-3)

    def loss(weights: Any, batch: Any) -> Any:
        x, y = batch
        logits, _ = model.stateless_call(weights, fixed, x, training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean()

    gradient = jax_privacy.clipped_grad(
        loss,
        l2_clip_norm=CLIP,
        normalize_by=case.batch_size,
        microbatch_size=chunk(case.batch_size) if mode == "microbatched" else None,
    )
    privatizer = jax_privacy.noise_addition.gaussian_privatizer(
        stddev=gradient.sensitivity() * NOISE_MULTIPLIER, prng_key=jax.random.key(0)
    )

    def updated(gradients: Any, weights: Any, state: Any) -> Any:
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    def plain(state: Any, batch: Any) -> Any:
        weights, inner = state
        return updated(jax.grad(loss)(weights, batch), weights, inner)

    def private(state: Any, batch: Any) -> Any:
        weights, inner, noise = state
        noised, noise = privatizer.update(gradient(weights, batch), noise)
        return *updated(noised, weights, inner), noise

    def fresh() -> tuple[Any, Any]:
        own = [w.copy() for w in weights]
        return own, optimizer.init(own)

    return {
        "plain": (jax.jit(plain, donate_argnums=0), fresh()),
        mode: (
            jax.jit(private, donate_argnums=0),
            (*fresh(), privatizer.init(weights)),
        ),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=CASES)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    case = CASES[options.model]
    rows = case.steps * case.batch_size
    x, y = case.data(rows)
    generator = np.random.default_rng(0)
    states: dict[str, Any] = {}

    def block_of(name: str, step: Any) -> measure.Block:
        def block(steps: int) -> measure.Times:
            clock = measure.Clock()
            for _ in range(steps):
                indices = generator.choice(rows, case.batch_size, shuffle=False)
                states[name] = step(states[name], (x[indices], y[indices]))
            jax.block_until_ready(states[name])
            return clock.milliseconds(steps)

        return block

    blocks = {}
    for name, (step, state) in steps_of(case, options.mode).items():
        states[name] = state
        blocks[name] = block_of(name, step)
    found = measure.race(blocks, ["plain"], case.steps, options.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
