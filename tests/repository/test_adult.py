"""The embedded census table and its data-free features."""

import numpy as np
import pytest

import adult
import pack_adult


@pytest.fixture(scope="module")
def columns():
    return adult.load_columns()


def test_table_has_the_published_counts(columns):
    assert len(columns["salary"]) == 45_222
    assert columns["salary"].mean() == pytest.approx(0.2478, abs=5e-5)
    assert columns["age"].min() == 17
    assert columns["capital-gain"].max() == 99_999


def test_codes_are_positions_in_the_published_code_book(columns):
    assert tuple(pack_adult.CODE_BOOK) == adult.CATEGORICAL
    for name, categories in pack_adult.CODE_BOOK.items():
        assert tuple(columns[f"{name}:names"]) == categories
        assert columns[name].max() < len(categories)


def test_file_is_small():
    assert adult.PATH.stat().st_size < 220_000


def test_one_hot_table_survives_packing_and_unpacking():
    header = ["age", "fnlwgt", *list(pack_adult.NUMERIC)[1:]]
    code_book = {**pack_adult.CODE_BOOK, pack_adult.LABEL: pack_adult.LABELS}
    for name, categories in code_book.items():
        header += [f"{name}_{category}" for category in sorted(categories)]
    generator = np.random.default_rng(0)
    table = np.zeros((50, len(header)), dtype=np.int64)
    table[:, 0] = generator.integers(17, 91, size=50)
    table[:, header.index("capital-gain")] = generator.integers(0, 100_000, size=50)
    for name in code_book:
        places = [i for i, title in enumerate(header) if title.startswith(f"{name}_")]
        table[np.arange(50), generator.choice(places, size=50)] = 1

    packed = pack_adult.encode(header, table)

    np.testing.assert_array_equal(pack_adult.decode(header, packed), table)


def test_row_with_two_categories_is_refused():
    header = [*pack_adult.NUMERIC, "workclass_Private", "workclass_State-gov"]
    table = np.ones((1, len(header)), dtype=np.int64)

    with pytest.raises(ValueError, match="workclass is not one-hot"):
        pack_adult.encode(header, table)


def test_split_has_documented_shapes_and_types():
    x_train, y_train, x_test, y_test = adult.load_adult()

    assert x_train.shape == (36_178, 138)
    assert x_test.shape == (9_044, 138)
    assert y_train.shape == (36_178,)
    assert y_test.shape == (9_044,)
    for array in (x_train, y_train, x_test, y_test):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    assert x_train.min() == 0
    assert x_train.max() <= 3
    assert set(np.unique(y_train)) == {0, 1}


def test_split_is_fixed_by_its_seed_and_holds_every_row_once():
    first = adult.load_adult(split_seed=7)
    again = adult.load_adult(split_seed=7)
    other = adult.load_adult(split_seed=8)

    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(first[3], other[3])
    assert first[1].sum() + first[3].sum() == other[1].sum() + other[3].sum() == 11_208


def test_every_one_hot_block_sums_to_one(columns):
    blocks = adult.feature_blocks(columns)

    for name in ("age", "hours-per-week", *adult.CATEGORICAL):
        np.testing.assert_array_equal(blocks[name].sum(axis=1), 1, err_msg=name)


def test_features_of_a_row_depend_on_that_row_alone(columns):
    rows = np.random.default_rng(1).choice(45_222, size=100, replace=False)
    subset = {
        name: values if name.endswith(":names") else values[rows]
        for name, values in columns.items()
    }

    np.testing.assert_array_equal(adult.features(subset), adult.features(columns)[rows])
