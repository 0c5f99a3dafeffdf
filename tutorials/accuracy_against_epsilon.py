"""What privacy costs: test accuracy against epsilon, as a picture.

    pip install '.[plot]'
    python tutorials/accuracy_against_epsilon.py

Trains the model of 01_first_private_model.py several times at each of several epsilons,
and once more without privacy, and writes docs/accuracy_against_epsilon.png.

On your own data do not look for a good epsilon like this: each of these trainings reads
the data, and all of them together cost more than any one of them. Here the table is
public.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import adult
import quiet

with quiet.start_up():
    import keras
    import tensorflow as tf

    import dp_train

    tf.config.list_logical_devices()

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "accuracy_against_epsilon.png"
EPSILONS = (0.03, 0.1, 0.3, 1.0, 3.0, 8.0)
DELTA = 1e-5
BATCH_SIZE = 2048
EPOCHS = 11


def accuracy(data: Any, optimizer: Any, is_private: bool, epochs: int) -> float:
    """Trains a logistic regression; its accuracy on the test set, in percent."""
    x_train, y_train, x_test, y_test = data
    model: Any = keras.Sequential(
        [keras.Input((x_train.shape[1],)), keras.layers.Dense(1, activation="sigmoid")]
    )
    if is_private:
        model = dp_train.make_private(model)
    model.compile(optimizer, loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(x_train, y_train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    return 100 * float(model.evaluate(x_test, y_test, batch_size=4096, verbose=0)[1])


def private_optimizer(target_epsilon: float) -> Any:
    """Settings that suit epsilon 1, used at every epsilon."""
    return dp_train.DPSGD(
        learning_rate=2.0,
        momentum=0.9,
        l2_norm_clip=1.0,
        target_epsilon=target_epsilon,
        target_delta=DELTA,
    )


def draw(
    private: dict[float, list[float]],
    plain: list[float],
    majority: float,
    output: Path,
) -> None:
    """Writes the picture.

    Args:
        private: accuracies in percent for each epsilon.
        plain: accuracies without privacy.
        majority: accuracy of the answer "no" to everybody.
        output: file to write.
    """
    epsilons = list(private)
    means = [statistics.mean(runs) for runs in private.values()]
    below = [m - min(r) for m, r in zip(means, private.values(), strict=True)]
    above = [max(r) - m for m, r in zip(means, private.values(), strict=True)]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    without = statistics.mean(plain)
    axes.axhline(without, color="0.3", linestyle="--")
    axes.annotate(
        f"without privacy: {without:.1f} %",
        (epsilons[0], without),
        xytext=(0, 5),
        textcoords="offset points",
        color="0.3",
    )
    axes.axhline(majority, color="0.6", linestyle=":")
    axes.annotate(
        f'always answering "no": {majority:.1f} %',
        (epsilons[-1], majority),
        xytext=(0, 5),
        textcoords="offset points",
        color="0.4",
        ha="right",
    )
    axes.errorbar(epsilons, means, yerr=(below, above), marker="o", capsize=4)
    for epsilon, mean in zip(epsilons, means, strict=True):
        axes.annotate(
            f"{mean:.1f}",
            (epsilon, mean),
            xytext=(7, -14),
            textcoords="offset points",
        )
    axes.set_xscale("log")
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.minorticks_off()
    axes.set_xlim(right=2 * epsilons[-1])  # room for the last label
    axes.set_ylim(top=without + 1.5)
    axes.set_xlabel("epsilon  (smaller: more private)")
    axes.set_ylabel("test accuracy, %")
    runs = len(plain)
    axes.set_title(
        "Logistic regression on the Adult census data,"
        f" delta = {DELTA:g}\nmean and range of {runs} runs at each epsilon"
    )
    axes.grid(axis="y", alpha=0.3)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def main() -> None:
    """Trains, prints a table, draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs at each epsilon")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    parser.add_argument("--smoke", action="store_true", help="two epsilons, one epoch")
    options = parser.parse_args()
    data = adult.load_adult()
    epsilons: tuple[float, ...] = EPSILONS
    epochs, runs = EPOCHS, options.runs
    if options.smoke:
        epsilons, epochs, runs = EPSILONS[-2:], 1, 1

    print("epsilon     test accuracy, %: mean (range)")
    private = {}
    for epsilon in epsilons:
        private[epsilon] = [
            accuracy(data, private_optimizer(epsilon), True, epochs)
            for _ in range(runs)
        ]
        print_row(f"{epsilon:g}", private[epsilon])
    plain = [
        accuracy(data, keras.optimizers.SGD(0.5, momentum=0.9), False, epochs)
        for _ in range(runs)
    ]
    print_row("infinity", plain)
    draw(private, plain, 100 * float(1 - data[3].mean()), options.output)
    print(f"Wrote {options.output}")


def print_row(epsilon: str, accuracies: list[float]) -> None:
    """One line of the table."""
    mean = statistics.mean(accuracies)
    print(f"{epsilon:<10}  {mean:.2f} ({min(accuracies):.2f} to {max(accuracies):.2f})")


if __name__ == "__main__":
    main()
