"""Choose a privacy budget before you train: what epsilon means and what it costs.

    pip install '.[plot]'
    python tutorials/02_choose_a_budget.py

Nothing is trained here and no data is read, so that you may try as much as you like: a
plan costs no privacy. Read the file from top to bottom. It ends with a picture of
epsilon against noise, steps and batch size, docs/choose_a_budget.png.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from accounting import (
    DefaultAccountant,
    GaussianEvent,
    NeighboringRelation,
    PldAccountant,
    PoissonSampledEvent,
    UnverifiedSamplingEvent,
    calibrate,
    tradeoff,
)

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "choose_a_budget.png"

# The plan that is varied below: 60,000 examples, as in many image sets. Delta belongs
# well below one over the number of examples; it is decided first and left alone.
EXAMPLES = 60_000
BATCH_SIZE = 256
EPOCHS = 60
NOISE = 1.1
DELTA = 1e-6


@functools.cache
def composed(batch_size: int, noise: float, steps: int) -> PldAccountant:
    """The whole training: what one step releases, and how often."""
    # Every example enters every batch by its own coin. That the adversary does not see
    # these coins is what makes small batches cheap.
    step = PoissonSampledEvent(batch_size / EXAMPLES, GaussianEvent(noise))
    return DefaultAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE).compose(step, steps)


def epsilon(batch_size: int, noise: float, steps: int) -> float:
    """What may be promised: the upper bound. It is certified, roundoff included."""
    return composed(batch_size, noise, steps).epsilon(DELTA).upper


def steps_for(batch_size: int, epochs: float = EPOCHS) -> int:
    """Steps that so many passes over the data take."""
    return math.ceil(epochs * EXAMPLES / batch_size)


def explain_epsilon() -> None:
    """What a number like 2.7 says about one person."""
    accountant = composed(BATCH_SIZE, NOISE, steps_for(BATCH_SIZE))
    bounds = accountant.epsilon(DELTA)
    print(f"The plan: batches of {BATCH_SIZE}, noise {NOISE:g}, {EPOCHS} epochs.")
    print(f"  epsilon {bounds} at delta {DELTA:g}")

    # Somebody who has the model guesses whether you were in the data. Without the model
    # a test with 1 % false alarms finds 1 % of the members; with it, a little more.
    print("  the best test for membership finds at most")
    for rate, found in tradeoff.true_positive_rate(accountant, [0.1, 0.01, 0.001]):
        print(f"    {found.upper:7.2%} of the members at {rate:6.1%} false alarms")
    guess = tradeoff.bayes_success(accountant, 0.5)
    print(f"    and a guess at even odds is right in at most {guess.upper:.1%}")


def explain_prices() -> None:
    """What noise a promise costs, and what else it could buy."""
    print("\nThe noise that a promise costs, all else unchanged")
    steps = steps_for(BATCH_SIZE)
    for target in (0.5, 1.0, 2.0, 4.0, 8.0):
        noise = calibrate.noise_multiplier(target, DELTA, BATCH_SIZE / EXAMPLES, steps)
        # What the gradient of a batch drowns in: noise over the number of examples.
        print(
            f"  epsilon {target:<4g} noise multiplier {noise:6.3f},"
            f" noise per example {noise / BATCH_SIZE:.5f} clip norms"
        )

    # Larger batches need more noise for the same promise, but far less per example.
    # Hence the first rule of private training: larger batches, fewer steps.
    print("\nThe same promise, epsilon 2, and the same number of epochs")
    for size in (64, 256, 1024, 4096):
        noise = calibrate.noise_multiplier(2.0, DELTA, size / EXAMPLES, steps_for(size))
        print(
            f"  batch size {size:<5d} noise multiplier {noise:6.3f},"
            f" noise per example {noise / size:.5f} clip norms"
        )

    # The question can be turned round: the noise is given, how long may I train?
    step = PoissonSampledEvent(BATCH_SIZE / EXAMPLES, GaussianEvent(NOISE))
    count = calibrate.steps(2.0, DELTA, step)
    size = calibrate.batch_size(2.0, DELTA, NOISE, EXAMPLES, steps_for)
    print(f"\nWith noise {NOISE:g}, epsilon 2 allows {count} steps of {BATCH_SIZE},")
    print(f"or {EPOCHS} epochs with batches of {size}.")


def explain_sampling() -> None:
    """Why the way batches are formed must be stated."""
    steps = steps_for(BATCH_SIZE)
    # Cut a shuffled dataset into batches and each example takes part once an epoch, in
    # a batch that can be known. No tight bound is known for that; this one is valid.
    relation = NeighboringRelation.ZERO_OUT
    once = UnverifiedSamplingEvent(GaussianEvent(NOISE))
    shuffled = DefaultAccountant(relation).compose(once, EPOCHS)
    print("\nThe same training by how its batches are formed, epsilon at most")
    print(f"  by coins (fit on arrays)    {epsilon(BATCH_SIZE, NOISE, steps):.4g}")
    print(f"  by cutting a shuffled set   {shuffled.epsilon(DELTA).upper:.4g}")


def draw(points: int, output: Path) -> None:
    """Epsilon against noise, steps and batch size, the others as in the plan."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    by_noise, by_steps, by_size = figure.subplots(1, 3, sharey=True)
    steps = steps_for(BATCH_SIZE)

    noises = list(spread(0.5, 8.0, points))
    curve = [epsilon(BATCH_SIZE, noise, steps) for noise in noises]
    by_noise.plot(noises, curve)
    by_noise.plot(NOISE, epsilon(BATCH_SIZE, NOISE, steps), "o", color="C1")
    by_noise.set_xlabel("noise multiplier")
    by_noise.set_xscale("log")
    by_noise.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    by_noise.minorticks_off()
    by_noise.set_ylabel("epsilon, upper bound")

    counts = [round(count) for count in spread(100, 100_000, points)]
    by_steps.plot(counts, [epsilon(BATCH_SIZE, NOISE, count) for count in counts])
    by_steps.plot(steps, epsilon(BATCH_SIZE, NOISE, steps), "o", color="C1")
    by_steps.set_xlabel("steps")

    sizes = [round(size) for size in spread(16, 8192, points)]
    fixed = [epsilon(size, NOISE, steps_for(size)) for size in sizes]
    by_size.plot(sizes, fixed, label=f"{EPOCHS} epochs")
    by_size.plot(sizes, [epsilon(size, NOISE, 2000) for size in sizes], "--",
                 label="2000 steps")  # fmt: skip
    by_size.plot(BATCH_SIZE, epsilon(BATCH_SIZE, NOISE, steps), "o", color="C1")
    by_size.set_xlabel("expected batch size")
    by_size.legend()

    by_steps.set_xscale("log")
    by_size.set_xscale("log")
    for axes in (by_noise, by_steps, by_size):
        axes.set_yscale("log")
        axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        axes.axhspan(0.01, 1, color="C2", alpha=0.08)
        axes.set_ylim(0.1, 200)
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{EXAMPLES:,} examples, Poisson batches, delta = {DELTA:g}; the dot is the"
        f" plan: batch size {BATCH_SIZE}, noise {NOISE:g}, {EPOCHS} epochs"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)
    print(f"\nWrote {output}")


def spread(first: float, last: float, count: int) -> Iterable[float]:
    """Numbers with equal ratios."""
    return (first * (last / first) ** (i / (count - 1)) for i in range(count))


def main() -> None:
    """Prints what the picture cannot show, then draws it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the picture")
    parser.add_argument("--smoke", action="store_true", help="few points")
    options = parser.parse_args()
    explain_epsilon()
    explain_prices()
    explain_sampling()
    draw(4 if options.smoke else 25, options.output)

    print("\nHow to choose")
    print("  1. Who is one unit: an example, or a person with several? Decide delta,")
    print("     ten times below one over their number or less.")
    print("  2. Take the smallest epsilon at which the model is still useful on public")
    print("     data. Up to 1 is strong, above 10 says little about a single person.")
    print("  3. Then the largest batches that you can afford, and few epochs.")
    print("  4. Every training on the same data adds up. Plan for those that you throw")
    print("     away too: accounting.Ledger adds what they spent.")
    print("  One plan at a time: compute_dp_sgd_privacy --help")


if __name__ == "__main__":
    main()
