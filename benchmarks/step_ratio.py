"""What a private step costs: its time over that of the plain Keras step.

    python benchmarks/step_ratio.py [--engines auto vectorized loop] [--smoke]

Both train the same model through `fit` in one process, in alternating blocks of steps,
so that whatever else the machine does disturbs both alike. The private step is whole:
Poisson sampling, per-example clipping, noise from the cryptographic keystream, ledger.
Shown are medians over the blocks of wall time and of CPU time (all threads of the
process) a step. Set-up and tracing are left out: each model first trains unmeasured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402 (TensorFlow reads the setting when it is imported)
import numpy as np  # noqa: E402

import dp_train  # noqa: E402

Times = tuple[float, float]
"""(wall, CPU) milliseconds a step."""


def mlp() -> Any:
    """784-256-256-10: 269,322 weights."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def cnn() -> Any:
    """The network of the MNIST tutorials of DP-SGD: 26,010 weights."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 8, strides=2, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2, strides=1),
            keras.layers.Conv2D(32, 4, strides=2, activation="relu"),
            keras.layers.MaxPooling2D(2, strides=1),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "MLP 784-256-256-10": (mlp, 256),
    "CNN 16-32-32-10": (cnn, 250),
}


class EpochTimer(keras.callbacks.Callback):
    """Wall and CPU time from the begin to the end of an epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts both clocks."""
        self._start = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stops both clocks."""
        wall, cpu = self._start
        self.seconds = time.perf_counter() - wall, time.process_time() - cpu


def compiled(model: Any, optimizer: Any) -> Any:
    """The model with the loss that all of them train on."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss)
    return model


def block(model: Any, data: Any, batch_size: int) -> Times:
    """Times one epoch of a model."""
    timer = EpochTimer()
    x, y = data
    model.fit(x, y, batch_size=batch_size, epochs=1, verbose=0, callbacks=[timer])
    wall, cpu = timer.seconds
    steps = len(x) // batch_size
    return 1e3 * wall / steps, 1e3 * cpu / steps


def measured(
    make_model: Callable[[], Any], engine: str, batch_size: int, steps: int, blocks: int
) -> tuple[Times, Times]:
    """Median times a step: (plain, private)."""
    generator = np.random.default_rng(0)
    count = steps * batch_size
    x = generator.random((count, 28, 28, 1), dtype=np.float32)
    data = x, generator.integers(0, 10, count)
    plain = compiled(make_model(), keras.optimizers.SGD(0.1))
    private = compiled(
        dp_train.make_private(make_model(), gradients=engine),
        dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.1),
    )
    times: dict[str, list[Times]] = {"plain": [], "private": []}
    for model in (plain, private):
        block(model, data, batch_size)
    for _ in range(blocks):
        times["plain"].append(block(plain, data, batch_size))
        times["private"].append(block(private, data, batch_size))

    def median(name: str) -> Times:
        wall, cpu = zip(*times[name], strict=True)
        return statistics.median(wall), statistics.median(cpu)

    return median("plain"), median("private")


def main() -> None:
    """Measures every model and engine and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "--engines",
        nargs="+",
        default=["auto", "vectorized"],
        help="as in make_private",
    )
    add("--steps", type=int, default=20, help="steps in a block")
    add("--blocks", type=int, default=7, help="blocks of each kind")
    add("--smoke", action="store_true", help="two short blocks: does it run?")
    options = parser.parse_args()
    steps, blocks = (2, 2) if options.smoke else (options.steps, options.blocks)

    print("milliseconds a step: wall / CPU of all threads")
    head = f"{'model':<20}{'batch':>6}  {'engine':<12}"
    print(f"{head}{'plain':>14}{'private':>16}{'ratio wall / CPU':>20}")
    for name, (make_model, batch_size) in MODELS.items():
        for engine in options.engines:
            plain, private = measured(make_model, engine, batch_size, steps, blocks)
            row = f"{name:<20}{batch_size:>6}  {engine:<12}"
            row += f"{plain[0]:>7.1f} /{plain[1]:>5.1f}"
            row += f"{private[0]:>9.1f} /{private[1]:>5.0f}"
            row += f"{private[0] / plain[0]:>13.1f} /{private[1] / plain[1]:>5.1f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
