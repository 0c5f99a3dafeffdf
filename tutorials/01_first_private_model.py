"""Your first private model: epsilon 1 on census data, in about ten seconds.

    python tutorials/01_first_private_model.py

The question is whether a person earns more than 50,000 dollars a year, and the model is
a logistic regression. It is trained twice: with differential privacy, so that hardly
anything about any one person can be read from its weights, and without. Read the file
from top to bottom; every step says what it is for. The data and its licence are
described in tutorials/data/README.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import adult
import quiet

with quiet.start_up():
    import keras
    import tensorflow as tf

    import dp_train

    tf.config.list_logical_devices()  # TensorFlow looks for GPUs here, and says so

# Delta is the probability with which the promise may fail. It belongs well below one
# over the number of examples: 1 / 36,178 is 2.8e-5.
DELTA = 1e-5

# Larger batches and fewer steps than one would choose without privacy: the noise of a
# step has one size, whether it is added to the gradients of ten people or of thousands.
BATCH_SIZE = 2048
EPOCHS = 11


def build_model(features: int) -> Any:
    """An ordinary Keras model; nothing in it knows about privacy."""
    return keras.Sequential(
        [keras.Input((features,)), keras.layers.Dense(1, activation="sigmoid")]
    )


def train_private(
    data: Any, target_epsilon: float, epochs: int, verbose: int, log_dir: Path
) -> Any:
    """Trains with differential privacy. Three things differ from ordinary Keras."""
    x_train, y_train, _, _ = data

    # First: wrap the model. From here on its fit draws batches at random, each person
    # by an own coin, and the model keeps a ledger of all that it released.
    model = dp_train.make_private(build_model(x_train.shape[1]))

    # Second: a DP optimizer. It is SGD with momentum, and takes the same arguments.
    # l2_norm_clip is the most that one person may move the sum of the gradients. Noise
    # in proportion to it then hides whether that person was there at all. How much
    # noise is needed is computed from the target, when fit knows the number of steps.
    model.compile(
        optimizer=dp_train.DPSGD(
            learning_rate=2.0,
            momentum=0.9,
            l2_norm_clip=1.0,
            target_epsilon=target_epsilon,
            target_delta=DELTA,
        ),
        loss="binary_crossentropy",
        metrics=["accuracy"],
    )

    # Third, if you like: see epsilon grow. It is computed from the steps that were
    # executed, not from the plan, and shown beside the loss. With log_dir it is also
    # written to TensorBoard event files.
    model.fit(
        x_train,
        y_train,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        verbose=verbose,
        callbacks=[dp_train.EpsilonLogger(delta=DELTA, log_dir=log_dir)],
    )
    return model


def train_plain(data: Any, epochs: int) -> Any:
    """The same model and the same number of steps, without privacy."""
    x_train, y_train, _, _ = data
    model = build_model(x_train.shape[1])
    # Without clipping the gradients are larger, so the best learning rate is smaller.
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=0.5, momentum=0.9),
        loss="binary_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x_train, y_train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    return model


def accuracy_on_test_set(model: Any, data: Any) -> float:
    """Share of right answers, in percent, on people whom training never saw."""
    _, _, x_test, y_test = data
    _, accuracy = model.evaluate(x_test, y_test, batch_size=4096, verbose=0)
    return 100 * float(accuracy)


def main() -> None:
    """Trains both models and compares them."""
    options = parse_options()
    start = time.perf_counter()
    data = adult.load_adult()
    epochs = EPOCHS
    if options.smoke:
        epochs = 1
        x_train, y_train, x_test, y_test = data
        data = x_train[:8000], y_train[:8000], x_test, y_test
    log_dir = options.log_dir / time.strftime("%Y%m%d-%H%M%S")
    # A bar that moves in a terminal; one line an epoch where the output is a file.
    verbose = 1 if sys.stdout.isatty() else 2

    print(f"Training on {len(data[0]):,} people, epsilon at most", end=" ")
    print(f"{options.target_epsilon:g} at delta {DELTA:g}.")
    # This table is public. On private data the loss and the accuracy that the bar shows
    # must not be published: they are computed from the examples without noise.
    private: list[float] = []
    plain: list[float] = []
    for run in range(options.runs):
        model = train_private(
            data,
            options.target_epsilon,
            epochs,
            verbose if run == 0 else 0,
            log_dir / f"run-{run + 1}",
        )
        private.append(accuracy_on_test_set(model, data))
        plain.append(accuracy_on_test_set(train_plain(data, epochs), data))

    print("\nAccuracy on the test set")
    print(f"  with privacy      {described(private)}")
    print(f"  without privacy   {described(plain)}")

    # What may be said about the model, with all that it does not cover. A report as
    # JSON, for a model card: model.privacy_report(delta).to_json()
    print(f"\n{model.privacy_report(delta=DELTA)}")

    noise_multiplier = model.optimizer.noise_multiplier
    steps = model.privacy_ledger.total
    print("\nWhat to do next")
    print("  Watch epsilon grow:")
    print(f"    {command('tensorboard')} --logdir {options.log_dir}")
    print("  Ask what another plan would cost, without training anything:")
    print(f"    {command('compute_dp_sgd_privacy')} --N={len(data[0])}", end=" ")
    print(f"--batch_size={BATCH_SIZE} --steps={steps}", end=" ")
    print(f"--noise_multiplier={noise_multiplier:.4g} --delta={DELTA:g}")
    print("  Trade accuracy for privacy:")
    print(f"    {command('python')} tutorials/01_first_private_model.py", end=" ")
    print("--target_epsilon=0.3")
    print("  Make your own model private: the ten lines in README.md.")
    print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")


def described(accuracies: list[float]) -> str:
    """One accuracy, or the mean of several with their range."""
    text = f"{statistics.mean(accuracies):.2f} %"
    if len(accuracies) > 1:
        text += f"  (mean of {len(accuracies)} runs,"
        text += f" {min(accuracies):.2f} to {max(accuracies):.2f})"
    return text


def command(name: str) -> str:
    """How to call a program of this Python's environment from here."""
    path = Path(sys.executable).parent / name
    return os.path.relpath(path) if Path.cwd() in path.parents else name


def parse_options() -> argparse.Namespace:
    """What may be typed behind the name of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--target_epsilon", type=float, default=1.0, help="default 1")
    add("--runs", type=int, default=1, help="train several times and show the mean")
    add("--log_dir", type=Path, default=Path("logs"), help="for TensorBoard")
    add("--smoke", action="store_true", help="few people and few steps: does it run?")
    return parser.parse_args()


if __name__ == "__main__":
    main()
