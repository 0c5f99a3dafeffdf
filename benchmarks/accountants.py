"""Epsilon of this package and of its peers: error, width of the bracket, CPU time.

    python benchmarks/accountants.py [--no-peers] [--sweep COUNT] [--smoke]

Twenty settings (sampling probability, noise multiplier, steps, delta) under
add-or-remove-one. The truth is the contour integral or closed form to seven digits.
Times are CPU seconds of one call in this process, imports and caches warmed by another
setting before. dp-accounting (Renyi and PLD, its default grid) is always a peer,
prv-accountant (its bracket at an error of 0.1) if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Run from a checkout, whether or not the package is installed.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# One thread, for peers whose sums go through a threaded library.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dp_accounting  # noqa: E402
import numpy as np  # noqa: E402
from dp_accounting import pld as their_pld  # noqa: E402
from dp_accounting import rdp as their_rdp  # noqa: E402

from accounting import (  # noqa: E402
    Bounds,
    GaussianEvent,
    PldAccountant,
    PoissonSampledEvent,
    RdpAccountant,
    calibrate,
)
from accounting.pld import accountant as pld  # noqa: E402
from accounting.rdp import accountant as rdp  # noqa: E402

Setting = tuple[float, float, int, float]

SETTINGS: list[tuple[str, Setting, float]] = [
    ("S01", (0.01, 1.0, 1000, 1e-5), 1.828237),
    ("S02", (256 / 60000, 1.1, 14062, 1e-5), 2.381597),
    ("S03", (0.004, 0.7, 10000, 1e-6), 5.862535),
    ("S04", (16384 / 1281167, 2.5, 72000, 8e-7), 7.464984),
    ("S05", (0.5, 50.0, 10000, 1e-6), 4.887913),
    ("S06", (0.001, 0.3, 1000, 1e-5), 18.14461),
    ("S07", (1e-5, 0.3, 10**6, 1e-8), 20.47123),
    ("S08", (1e-5, 1.0, 10**6, 1e-12), 0.08073477),
    ("S09", (0.1, 10.0, 100000, 1e-9), 23.4898),
    ("S10", (0.5, 0.8, 100, 1e-6), 62.61008),
    ("S11", (0.0001, 0.6, 100000, 1e-10), 3.046344),
    ("S12", (0.01, 0.5, 10000, 1e-5), 43.36649),
    ("S13", (1.0, 5.0, 25, 1e-5), 4.377178),
    ("S14", (1.0, 100.0, 10**6, 1e-12), 119.5884),
    ("S15", (0.001, 50.0, 10**6, 1e-6), 0.07097097),
    ("S16", (0.2, 20.0, 10**6, 1e-12), 119.6802),
    ("S17", (0.01, 1.0, 1, 1e-5), 0.1994504),
    ("S18", (0.02, 1.0, 1, 1e-12), 2.805499),
    ("S19", (0.001, 0.5, 20000, 1e-9), 11.27153),
    ("S20", (0.5, 10.0, 1000, 1e-12), 12.07255),
]
# (sampling probability, steps, delta, target epsilon), best noise multiplier
CALIBRATION = [
    ((0.01, 10_000, 1e-6, 1.0), 4.302106),
    ((256 / 60000, 14_062, 1e-5, 3.0), 0.9684079),
    ((0.001, 20_000, 1e-9, 8.0), 0.5482217),
]
SEVEN_DIGITS = 5e-7


def timed(function: Callable[[], object]) -> tuple[object, float]:
    """What a call returns, and its CPU seconds."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def event(q: float, noise: float) -> PoissonSampledEvent:
    """One step of DP-SGD."""
    return PoissonSampledEvent(q, GaussianEvent(noise))


def ours(setting: Setting) -> Bounds:
    """The certified bracket."""
    q, noise, steps, delta = setting
    return PldAccountant().compose(event(q, noise), steps).epsilon(delta)


def our_rdp(setting: Setting) -> float:
    """The Renyi bound at real orders."""
    q, noise, steps, delta = setting
    rdp._curve.cache_clear()
    return RdpAccountant().compose(event(q, noise), steps).epsilon(delta).upper


def as_tight(setting: Setting, theirs: float) -> float | None:
    """CPU seconds of the widest bracket whose upper end is at most another's bound."""
    q, noise, steps, delta = setting
    for width in (
        1e-1,
        1e-2,
        1e-3,
        3e-4,
        1e-4,
        3e-5,
        1e-5,
        3e-6,
        1e-6,
        3e-7,
        1e-7,
        3e-8,
    ):
        accountant = PldAccountant(relative_width=width)
        accountant.compose(event(q, noise), steps)
        _clear_caches()
        bounds, seconds = timed(partial(accountant.epsilon, delta))
        assert isinstance(bounds, Bounds)
        if bounds.upper <= theirs * (1 + SEVEN_DIGITS / 10):
            return seconds
    return None


def dp_accounting_epsilon(module: object, setting: Setting) -> float:
    """An accountant of dp-accounting, rdp or pld."""
    q, noise, steps, delta = setting
    make = {their_rdp: their_rdp.RdpAccountant, their_pld: their_pld.PLDAccountant}
    inner = dp_accounting.GaussianDpEvent(noise)
    accountant = make[module]()
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, inner), steps)
    return float(accountant.get_epsilon(delta))


def prv(setting: Setting) -> float | None:
    """The upper bound of prv-accountant; None where it gives up, or is not asked."""
    from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

    q, noise, steps, delta = setting
    try:
        accountant = PRVAccountant(
            prvs=[
                PoissonSubsampledGaussianMechanism(
                    sampling_probability=q, noise_multiplier=noise
                )
            ],
            max_self_compositions=[steps],
            eps_error=0.1,
            delta_error=delta / 1000,
        )
        return float(accountant.compute_epsilon(delta, [steps])[2])
    except (ValueError, RuntimeError, MemoryError, OverflowError):
        return None


def relative(value: float | None, truth: float) -> str:
    """How far a value is from the truth; "!" marks one below it."""
    if value is None:
        return "none"
    error = value / truth - 1
    return f"{100 * error:+.3g}%{'!' if error < -SEVEN_DIGITS else ''}"


def settings_table(settings: list[tuple[str, Setting, float]], peers: bool) -> None:
    """One line for each setting."""
    columns: dict[str, Callable[[Setting], float | None]] = {"our RDP": our_rdp}
    if peers:
        columns["dp-accounting RDP"] = lambda s: dp_accounting_epsilon(their_rdp, s)
        columns["dp-accounting PLD"] = lambda s: dp_accounting_epsilon(their_pld, s)
        if importlib.util.find_spec("prv_accountant"):
            # More steps take gigabytes or minutes there and are not asked.
            columns["prv-accountant"] = lambda s: prv(s) if s[2] <= 10**5 else None
    warm_up = (0.3, 3.0, 10, 1e-3)
    for function in (ours, *columns.values()):
        function(warm_up)
    names = ["lower", "upper", "width", "ms", *columns]
    if peers:
        names.append("ours, no looser than that PLD")
    print("| setting | truth | " + " | ".join(names) + " |")
    print("|" + "---|" * (len(names) + 2))
    times: dict[str, list[float]] = {name: [] for name in ("ours", *columns)}
    tight: list[float] = []
    outside = 0
    for name, setting, truth in settings:
        bounds, seconds = timed(lambda s=setting: ours(s))
        assert isinstance(bounds, Bounds)
        times["ours"].append(seconds)
        outside += not (
            bounds.lower <= truth * (1 + SEVEN_DIGITS)
            and bounds.upper >= truth * (1 - SEVEN_DIGITS)
        )
        width = (bounds.upper - bounds.lower) / bounds.upper
        line = [f"{bounds.lower:.7g}", f"{bounds.upper:.7g}", f"{width:.1e}"]
        line.append(f"{1e3 * seconds:.1f}")
        values: dict[str, float | None] = {}
        for column, function in columns.items():
            value, seconds = timed(lambda f=function, s=setting: f(s))
            values[column] = value
            if value is not None:
                times[column].append(seconds)
            line.append(f"{relative(value, truth)} {1e3 * seconds:.0f} ms")
        if peers:
            theirs = values["dp-accounting PLD"]
            # Where theirs is below the truth, no bound can be as tight.
            sound = max(theirs, truth * (1 + 1e-4))
            own = as_tight(setting, sound if theirs < truth else theirs)
            ratio = times["dp-accounting PLD"][-1] / own if own else 0.0
            tight.append(ratio)
            line.append(f"{1e3 * own:.1f} ms, {ratio:.1f} x" if own else "not reached")
        print(f"| {name} | {truth:.7g} | " + " | ".join(line) + " |", flush=True)
    print(f"\nbrackets that miss the truth: {outside}")
    for column, seconds in times.items():
        print(
            f"{column}: median {1e3 * statistics.median(seconds):.1f} ms,"
            f" largest {1e3 * max(seconds):.0f} ms"
        )
    if peers:
        ratios = [
            theirs / own
            for theirs, own in zip(
                times["dp-accounting PLD"], times["ours"], strict=True
            )
        ]
        print(
            f"dp-accounting PLD over ours: median {statistics.median(ratios):.0f};"
            f" over ours that is no looser: {statistics.median(tight):.0f}"
        )


def calibration_table() -> None:
    """What a target leaves open: how near the best, and how long it takes."""
    print("\n| q, steps, delta, target | best noise | ours, ms | steps, ms | q, ms |")
    print("|---|---|---|---|---|")
    for (q, steps, delta, target), best in CALIBRATION:
        noise, seconds = timed(
            partial(calibrate.noise_multiplier, target, delta, q, steps)
        )
        assert isinstance(noise, float)
        cells = [f"{noise / best - 1:+.1e} {1e3 * seconds:.0f}"]
        _clear_caches()
        step = event(q, noise)
        count, seconds = timed(partial(calibrate.steps, target, delta, step))
        assert isinstance(count, int)
        cells.append(f"{count / steps - 1:+.1e} {1e3 * seconds:.0f}")
        _clear_caches()
        found, seconds = timed(
            partial(calibrate.sampling_probability, target, delta, noise, steps)
        )
        assert isinstance(found, float)
        cells.append(f"{found / q - 1:+.1e} {1e3 * seconds:.0f}")
        setting = f"{q:.4g}, {steps}, {delta:g}, {target:g}"
        print(f"| {setting} | {best:.7g} | {' | '.join(cells)} |")


def command_time() -> None:
    """CPU seconds of the command, imports included."""
    arguments = "--N=60000 --batch_size=256 --noise_multiplier=1.1 --delta=1e-6"
    before = os.times()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "accounting.compute_dp_sgd_privacy",
            "--epochs=60",
            *arguments.split(),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=sys.path[0],
    )
    after = os.times()
    seconds = after.children_user - before.children_user
    seconds += after.children_system - before.children_system
    print(f"the command, imports included: {seconds:.2f} CPU s")


def running_table(steps: int) -> None:
    """What reading epsilon after every step of a training costs."""

    def read() -> float:
        last = 0.0
        for count in range(1, steps + 1):
            accountant = PldAccountant().compose(event(256 / 60000, 1.1), count)
            last = accountant.running_epsilon(1e-5)
        return last

    _, seconds = timed(read)
    print(
        f"\nepsilon after each of {steps} steps: {1e6 * seconds / steps:.0f} us a step"
    )


def sweep(count: int) -> None:
    """Random settings: width and time; that brackets hold is for the tests."""
    generator = np.random.default_rng(11)
    ranges = [(1e-5, 0.5), (0.35, 50.0), (5.0, 1e6), (1e-12, 1e-5)]
    widths, times = [], []
    for _ in range(count):
        q, noise, steps, delta = (
            math.exp(generator.uniform(math.log(low), math.log(high)))
            for low, high in ranges
        )
        bounds, seconds = timed(
            lambda q=q, noise=noise, steps=steps, delta=delta: ours(
                (q, noise, int(steps), delta)
            )
        )
        assert isinstance(bounds, Bounds)
        times.append(seconds)
        widths.append((bounds.upper - bounds.lower) / max(bounds.upper, 1e-9))
    times.sort()
    print(
        f"\n{count} random settings: widest {max(widths):.1e},"
        f" {sum(w > 1e-3 for w in widths)} wider than 1e-3,"
        f" median {1e3 * statistics.median(times):.1f} ms,"
        f" 95 % below {1e3 * times[int(0.95 * count)]:.0f} ms,"
        f" largest {1e3 * times[-1]:.0f} ms"
    )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--no-peers", action="store_true", help="this package only")
    add("--sweep", type=int, default=100, help="number of random settings")
    add("--smoke", action="store_true", help="a few settings: does it run?")
    options = parser.parse_args()
    # dp-accounting warns about each order that it drops.
    logging.getLogger("absl").setLevel(logging.ERROR)
    settings = SETTINGS[16:18] if options.smoke else SETTINGS
    # Memory first: the peers need more.
    for _, setting, _ in settings:
        ours(setting)
    sweep(2 if options.smoke else options.sweep)
    calibration_table()
    command_time()
    running_table(100 if options.smoke else 14_062)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory so far, imports included: {peak:.0f} MiB\n")
    _clear_caches()
    settings_table(settings, not options.no_peers)


def _clear_caches() -> None:
    """Forgets the answers of the first round, so that the table is computed anew."""
    pld._epsilon_bounds.cache_clear()


if __name__ == "__main__":
    main()
