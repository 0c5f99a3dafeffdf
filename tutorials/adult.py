"""The Adult census table as features whose scaling uses no statistic of the data.

A mean, a maximum or a list of seen categories taken from private rows is a release
like any other and would have to be paid for. Here every row is turned into features on
its own: each constant below is a round number or comes from the documentation of the
data set. (The constants were tried out on this table, which is public. On private data
every such trial costs privacy too.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

PATH = Path(__file__).resolve().parent / "data" / "adult.npz"
CATEGORICAL = (
    "workclass",
    "education",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "native-country",
)
EDUCATION_LEVELS = 16  # of the published code book
AGE_EDGES = tuple(range(25, 70, 5))
HOURS_EDGES = (20, 35, 40, 41, 50, 60)  # part-time ends at 35; exactly 40 is one group
CAPITAL_GAIN_STEPS = (1, *range(1_000, 11_000, 1_000))  # dollars
CAPITAL_LOSS_STEPS = (1, *range(1_000, 2_800, 200))
# Few people have capital gains or losses, and those decide the label. Clipping gives
# each example the same say: a rare feature is learned in time only if it is large.
CAPITAL_SCALE = 3.0


def load_columns(path: Path = PATH) -> dict[str, np.ndarray]:
    """The packed columns: numbers, codes, the label "salary", and "<column>:names"."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def group(values: np.ndarray, edges: tuple[int, ...]) -> Floats:
    """[row, len(edges) + 1] one-hot: the number of edges <= value."""
    return one_hot(np.digitize(values, edges), len(edges) + 1)


def one_hot(codes: np.ndarray, count: int) -> Floats:
    """[row, count] with a 1 at each row's code."""
    rows: Floats = np.eye(count, dtype=np.float32)[codes]
    return rows


def steps(values: np.ndarray, thresholds: tuple[int, ...]) -> Floats:
    """[row, threshold] 1 where value >= threshold: one weight for each further step."""
    return (values[:, None] >= np.asarray(thresholds)).astype(np.float32)


def feature_blocks(columns: Mapping[str, np.ndarray]) -> dict[str, Floats]:
    """Blocks of features in [0, 3], each row computed from that row alone."""
    education = (columns["education-num"] / EDUCATION_LEVELS).astype(np.float32)
    blocks = {
        "age": group(columns["age"], AGE_EDGES),
        "education-num": education[:, None],
        "capital-gain": CAPITAL_SCALE
        * steps(columns["capital-gain"], CAPITAL_GAIN_STEPS),
        "capital-loss": CAPITAL_SCALE
        * steps(columns["capital-loss"], CAPITAL_LOSS_STEPS),
        "hours-per-week": group(columns["hours-per-week"], HOURS_EDGES),
    }
    for name in CATEGORICAL:
        blocks[name] = one_hot(columns[name], len(columns[f"{name}:names"]))
    return blocks


def features(columns: Mapping[str, np.ndarray]) -> Floats:
    """[row, feature] the blocks side by side."""
    return np.concatenate(list(feature_blocks(columns).values()), axis=1)


def load_adult(
    split_seed: int = 0, test_fraction: float = 0.2, path: Path = PATH
) -> tuple[Floats, Floats, Floats, Floats]:
    """Training and test set: does a person earn more than 50,000 dollars a year?

    Args:
        split_seed: chooses the rows that are held out. The split is public and is not
            part of the privacy guarantee; keep it fixed.
        test_fraction: held-out part of the 45,222 rows, in (0, 1).
        path: the file that tools/pack_adult.py wrote.

    Returns:
        x_train [36178, 138], y_train [36178], x_test [9044, 138], y_test [9044]: all
        float32, labels 0 or 1.
    """
    columns = load_columns(path)
    x = features(columns)
    y = columns["salary"].astype(np.float32)
    order = np.random.default_rng(split_seed).permutation(len(y))
    test, train = np.split(order, [round(test_fraction * len(y))])
    return x[train], y[train], x[test], y[test]
