"""Battery: the noise in the weights is what noise_multiplier promises, and fresh.

Every claim is about the weight change that public training makes when all gradients
are zero: -(1 / B) N(0, (noise_multiplier * C)^2) for an inner SGD of learning rate 1.
False alarm 1e-9 for each assertion. At 10^6 samples a standard deviation that is off
by 0.76 % is seen with probability 1 - 1e-6.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy import stats

import dp_train
from dp_train.noise import ahead
from tests import statistics
from tests.batteries.training import drawing, private, with_lost_rows

WIDTH = 256
"""Two layers of WIDTH^2 weights: 131,072 samples a step."""
STEPS = 8
"""Steps that make 2^20 samples."""
L2_NORM_CLIP = 2.5
NOISE_MULTIPLIER = 1.3
POPULATION = 32


def silent_model(**options: Any) -> Any:
    """A private model without any gradient on `silent_data`; weights start at zero."""
    layer = {"use_bias": False, "kernel_initializer": "zeros"}
    model = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            keras.layers.Dense(WIDTH, **layer),
            keras.layers.Dense(WIDTH, **layer),
        ]
    )
    return private(
        model,
        l2_norm_clip=L2_NORM_CLIP,
        noise_multiplier=NOISE_MULTIPLIER,
        **options,
    )


def silent_data() -> tuple[Any, Any]:
    """Inputs and targets of zeros: every gradient is zero."""
    zeros = np.zeros((POPULATION, WIDTH), np.float32)
    return zeros, zeros


class _Recorder(keras.callbacks.Callback):
    """Keeps the change of the weights at every step, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[list[np.ndarray[Any, Any]]] = []
        self._last: list[np.ndarray[Any, Any]] = []

    def _weights(self) -> list[np.ndarray[Any, Any]]:
        return [np.asarray(v, np.float64) for v in self.model.trainable_variables]

    def on_train_begin(self, logs: Any = None) -> None:
        self._last = self._weights()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        new = self._weights()
        self.changes.append([b - a for a, b in zip(self._last, new, strict=True)])
        self._last = new


def changes_of_fit(
    model: Any, drawn: Any, batch_size: float, steps: int = STEPS, fits: int = 1
) -> np.ndarray[Any, Any]:
    """[steps, variables, WIDTH^2] weight changes of public fits on a chosen draw."""
    recorder = _Recorder()
    x, y = silent_data()
    with drawing(drawn):
        for _ in range(fits):
            model.fit(
                x,
                y,
                batch_size=batch_size,
                steps_per_epoch=steps // fits,
                callbacks=[recorder],
                verbose=0,
            )
    assert len(recorder.changes) == steps, (
        f"{len(recorder.changes)} steps, not {steps}."
    )
    return np.array([[c.ravel() for c in step] for step in recorder.changes])


def assert_stddev_of_the_weight_change(
    rows: int,
    batch_size: float,
    microbatch_size: int | str = "auto",
    noise_source: str = "aes256-ctr",
    engine: str = "auto",
) -> None:
    """It is noise_multiplier * C / B whatever number of rows is drawn, also none.

    Args:
        rows: number of rows drawn in each step, at most POPULATION.
        batch_size: B, the expected number, which is the divisor.
        microbatch_size: as in make_private.
        noise_source: as in DPOptimizer.
        engine: as in make_private.
    """
    model = silent_model(
        microbatch_size=microbatch_size, noise_source=noise_source, engine=engine
    )
    changes = changes_of_fit(model, np.arange(rows), batch_size)
    stddev = NOISE_MULTIPLIER * L2_NORM_CLIP / batch_size
    assert np.all(np.isfinite(changes)), "The noised update is not finite."
    assert changes.size >= 10**6, f"Only {changes.size} samples."
    statistics.assert_stddev(changes, stddev)
    statistics.assert_zero_mean(changes, stddev)
    # Every step and variable by itself, so that none hides behind the others.
    for step in changes:
        for variable in step:
            assert np.count_nonzero(variable) > 0.99 * variable.size, (
                "A silent release."
            )
            statistics.assert_stddev(variable, stddev)


def assert_noise_of_a_batch_of_nan_is_finite_and_full() -> None:
    """Examples that are all NaN leave exactly the noise of an empty batch."""
    model = silent_model()
    x, y = silent_data()
    recorder = _Recorder()
    with drawing(np.arange(4)), with_lost_rows():
        model.fit(
            x * np.nan,
            y,
            batch_size=4,
            steps_per_epoch=1,
            callbacks=[recorder],
            verbose=0,
        )
    changes = np.concatenate([c.ravel() for c in recorder.changes[0]])
    assert np.all(np.isfinite(changes)), "A NaN example reached the weights."
    statistics.assert_stddev(changes, NOISE_MULTIPLIER * L2_NORM_CLIP / 4)


def assert_noise_is_independent(noise_source: str = "aes256-ctr") -> None:
    """Across variables of one shape, across steps, and across fits.

    At 65,536 samples and 1e-9 a correlation of 0.024 or more is seen.
    """
    model = silent_model(noise_source=noise_source)
    changes = changes_of_fit(model, np.arange(2), 4, steps=4, fits=2)
    flat = changes.reshape(-1, changes.shape[-1])
    for i in range(len(flat)):
        for j in range(i):
            statistics.assert_uncorrelated(flat[i], flat[j])
        half = flat[i].size // 2
        statistics.assert_uncorrelated(flat[i][:half], flat[i][half:])
        statistics.assert_uncorrelated(flat[i][:-1], flat[i][1:])


def assert_noise_is_normal(noise_source: str = "aes256-ctr") -> None:
    """Kolmogorov-Smirnov distance and tails of 2^20 samples of the weight change."""
    model = silent_model(noise_source=noise_source)
    changes = changes_of_fit(model, np.arange(0), 4)
    stddev = NOISE_MULTIPLIER * L2_NORM_CLIP / 4
    statistics.assert_distribution(changes, stats.norm(scale=stddev).cdf)
    statistics.assert_normal_tails(changes, stddev)


def one_seeded_step(noise_source: str = "aes256-ctr") -> np.ndarray[Any, Any]:
    """Weight change of a first step after keras.utils.set_random_seed(1)."""
    keras.utils.set_random_seed(1)
    model = silent_model(noise_source=noise_source)
    return changes_of_fit(model, np.arange(0), 4, steps=1)[0, 0]


def assert_noise_ignores_the_random_seed(noise_source: str = "aes256-ctr") -> None:
    """Equal keras.utils.set_random_seed, other noise."""
    statistics.assert_uncorrelated(
        one_seeded_step(noise_source), one_seeded_step(noise_source)
    )


_CHILD = """
import sys
from tests.batteries import noise
sys.stdout.buffer.write(b"<noise>" + noise.one_seeded_step(sys.argv[1]).tobytes())
"""


def assert_processes_draw_other_noise(noise_source: str = "aes256-ctr") -> None:
    """A second process with the same seeds and program draws other noise."""
    root = Path(dp_train.__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, noise_source],
        cwd=root,
        capture_output=True,
        check=True,
    )
    drawn = np.frombuffer(child.stdout.split(b"<noise>")[1], np.float64)
    statistics.assert_stddev(drawn, NOISE_MULTIPLIER * L2_NORM_CLIP / 4)
    statistics.assert_uncorrelated(one_seeded_step(noise_source), drawn)


def assert_a_fork_draws_other_noise(count: int = 1 << 17) -> None:
    """Parent and child of a fork draw different noise from then on.

    What was drawn ahead before the fork is in the memory of both. Two draws of 1,000
    float64 samples agree in one by chance with probability below 1e-9.
    """
    keystream = ahead.DrawnAhead()

    def draw() -> Any:
        words = keystream.words(1000).astype(np.float64)
        return [*words, *keystream.normals(count, 1.0, np.float64)[:1000]]

    draw()
    time.sleep(0.2)  # what is drawn ahead is ready by then
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        # Nothing but the keystream: the threads of the parent are not here.
        os.write(writing, np.array(draw()).tobytes())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = np.frombuffer(pipe.read(), np.float64)
    os.waitpid(child, 0)
    ours = draw()
    assert theirs.size == 2000, "The child drew nothing."
    assert not np.any(np.isin(ours, theirs)), "Parent and child share a keystream."
