"""What a private step costs: its time over that of the plain Keras step.

    python benchmarks/step_ratio.py [--models mlp cnn] [--engines auto "auto, XLA"]

Plain and private train the same model through `fit` in one process, in alternating
blocks of steps. The private step is whole: Poisson sampling, per-example clipping,
noise from the cryptographic keystream for every weight, ledger. Plain is the faster of
Keras with and without XLA. Ratios are medians over pairs of neighbouring blocks, of
wall time and of CPU time of all threads. Tracing is in the column "first fit" only.

Peak memory and the time of the first fit come from processes of their own, as do the
errors against the engine "loop": the largest over the variables of

    |difference| / max(|reference|, |all references| / 1000)         l2 norms

on one batch of 8 rows, clipped to the median norm, in float32 and in float64.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # from a checkout, whether or not it is installed
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure  # noqa: E402
from benchmarks.models import CASES  # noqa: E402

PLAIN = ("plain", "plain XLA")
LAZY, XLA = "auto, lazy noise", "auto, XLA"
"""Engine "auto" with an option of the optimizer, and of compile."""
ERROR_ROWS = 8


def optimizer(case: Any) -> Any:
    """A new plain optimizer; the rate is small, since the labels are random."""
    import keras

    classes = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
    return classes[case.optimizer](1e-3)


def compiled(case: Any, kind: str, noise_multiplier: float = 1.1) -> Any:
    """The model of a case: kind is one of PLAIN, an engine, LAZY or XLA."""
    import keras

    import dp_train

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=case.has_logits)
    model = case.build(keras)
    if kind in PLAIN:
        model.compile(optimizer(case), loss=loss, jit_compile=kind == "plain XLA")
    else:
        model = dp_train.make_private(model, gradients=kind.partition(",")[0])
        private = dp_train.DPOptimizer(
            optimizer(case),
            l2_norm_clip=1.0,
            noise_multiplier=noise_multiplier,
            lazy_noise=kind == LAZY,
        )
        model.compile(private, loss=loss, jit_compile=kind == XLA)
    return model


def block(model: Any, case: Any, data: Any, steps: int) -> measure.Times:
    """Times an epoch of some steps, from its begin to its end."""
    import keras

    clocks: list[measure.Clock] = []
    times: list[measure.Times] = []
    timer = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: clocks.append(measure.Clock()),
        on_epoch_end=lambda epoch, logs: times.append(clocks[-1].milliseconds(steps)),
    )
    x, y = (a[: steps * case.batch_size] for a in data)
    model.fit(x, y, batch_size=case.batch_size, verbose=0, callbacks=[timer])
    return times[0]


def speed(case: Any, engine: str, rounds: int) -> dict[str, Any]:
    """Medians a step of plain and private training in this process."""
    data = case.data(case.steps * case.batch_size)
    models = {name: compiled(case, name) for name in (*PLAIN, engine)}
    blocks: dict[str, measure.Block] = {
        name: lambda steps, model=model: block(model, case, data, steps)
        for name, model in models.items()
    }
    return measure.race(blocks, PLAIN, case.steps, rounds)


def cost(case: Any, kind: str) -> dict[str, Any]:
    """Seconds of the first fit, of one step, and peak memory of this process."""
    data = case.data(4 * case.batch_size)
    model = compiled(case, kind)
    start = time.perf_counter()
    block(model, case, data, 1)
    first_fit = time.perf_counter() - start
    block(model, case, data, 4)
    return {"first_fit": first_fit, "peak_mib": measure.peak_mib()}


def error(case: Any, engine: str, floatx: str) -> dict[str, Any]:
    """How far the engine's clipped sum is from the loop's."""
    import keras
    import numpy as np

    import dp_train

    keras.config.set_floatx(floatx)
    keras.utils.set_random_seed(0)
    x, y = case.data(ERROR_ROWS, seed=1)
    x = x.astype(floatx) if x.dtype == np.float32 else x

    def clipped(model: Any, rows: slice, clip: float) -> list[Any]:
        found = dp_train.clipped_gradients(model, x[rows], y[rows], l2_norm_clip=clip)
        return [np.asarray(g, np.float64) for g in found.gradients]

    def norm(gradients: list[Any]) -> float:
        return float(np.sqrt(sum(np.sum(g**2) for g in gradients)))

    reference, model = (compiled(case, name) for name in ("loop", engine))
    model.set_weights(reference.get_weights())
    norms = [norm(clipped(reference, slice(i, i + 1), 1e9)) for i in range(ERROR_ROWS)]
    clip = float(np.median(norms))
    expected = clipped(reference, slice(None), clip)
    sums = clipped(model, slice(None), clip)
    floor = norm(expected) / 1000
    return {
        "error": max(
            norm([a - b]) / max(norm([b]), floor)
            for a, b in zip(sums, expected, strict=True)
        )
    }


def work(task: str, name: str, kind: str, rounds: int) -> dict[str, Any]:
    """One measurement, in the process of its own that it is started in."""
    case = CASES[name]
    if task == "speed":
        return speed(case, kind, rounds)
    if task == "cost":
        return cost(case, kind)
    return error(case, kind, task)


def further_cells(found: dict[str, dict[str, Any]]) -> list[str]:
    """Memory, time of the first fit and errors, or why there are none."""

    def pair(text: str, tasks: tuple[str, str], separator: str) -> str:
        cells = (found[t].get("failed") or text.format(**found[t]) for t in tasks)
        return separator.join(cells)

    return [
        pair("{peak_mib:.0f}", ("private", "plain"), " / "),
        pair("{first_fit:.1f}", ("private", "plain"), " / "),
        pair("{error:.0e}", ("float32", "float64"), ", "),
    ]


def main() -> None:
    """Prints the table, or does one measurement of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", default=list(CASES), choices=CASES)
    engines = f'as in make_private, or "{LAZY}" or "{XLA}"; default: auto, and where '
    engines += "tables owe their noise, lazy noise too"
    add("--engines", nargs="+", help=engines)
    add("--rounds", type=int, default=9, help="blocks of each kind")
    add("--limit", type=float, default=300, help="seconds for each measurement")
    add("--only-speed", action="store_true", help="no memory, no errors")
    add("--smoke", action="store_true", help="one short round: does it run?")
    add("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds = 1 if options.smoke else options.rounds
    if options.work:
        print(json.dumps(work(*options.work, rounds)))
        return

    def measured(task: str, name: str, kind: str) -> dict[str, Any]:
        arguments = ["--work", task, name, kind, "--rounds", str(rounds)]
        script = Path(__file__).resolve()
        return measure.in_process(sys.executable, script, arguments, options.limit)

    print(f"{measure.machine()}, {measure.load()}; times are milliseconds a step\n")
    speeds = ["plain", "private", "wall ratio", "CPU ratio"]
    further = ["peak MiB, private / plain", "first fit s, private / plain"]
    further += ["error float32, float64"]
    table = measure.Table(
        "model (batch)", "engine", *speeds, *([] if options.only_speed else further)
    )
    for name in options.models:
        case = CASES[name]
        plain: dict[str, Any] = {}
        is_lazy = name == "embedding"
        for engine in options.engines or ["auto", *[LAZY] * is_lazy]:
            row = measure.speed_cells(measured("speed", name, engine))
            if not options.only_speed:
                plain = plain or measured("cost", name, PLAIN[0])
                found = {"plain": plain, "private": measured("cost", name, engine)}
                for floatx in ("float32", "float64"):
                    found[floatx] = measured(floatx, name, engine)
                row += further_cells(found)
            table.row(f"{case.title} ({case.batch_size})", engine, *row)


if __name__ == "__main__":
    main()
