"""BUILD spells out the real imports, and the tool that writes it sees a missing one."""

from pathlib import Path

import pytest

import write_build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """Two packages, every form of import, BUILD as the tool writes it."""
    files = {
        "accounting/__init__.py": "from .events import Event\n",
        "accounting/events.py": "import math\nfrom dataclasses import dataclass\n",
        "accounting/rdp.py": (
            "import numpy as np\nfrom accounting import events\n\n"
            "def f():\n    from scipy.special import gammaln\n"
        ),
        "accounting/compute_dp_sgd_privacy.py": "import accounting.rdp as rdp\n",
        "dp_train/__init__.py": "",
        "dp_train/values.py": "import tensorflow as tf\n",
        "dp_train/noise/__init__.py": "from . import secure\n",
        "dp_train/noise/secure.py": "from ..values import Batch\nimport accounting\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert write_build.main([], tmp_path) == 0
    return tmp_path


def deps_of(tree):
    return write_build.dependencies(tree, write_build.find_modules(tree))


def test_build_file_is_current(capsys):
    assert write_build.main(["--check"], ROOT) == 0, capsys.readouterr().err


def test_every_form_of_import_becomes_a_dependency(tree):
    assert deps_of(tree) == {
        "accounting": ['":accounting.events"'],
        "accounting.compute_dp_sgd_privacy": ['":accounting.rdp"'],
        "accounting.events": [],
        "accounting.rdp": [
            '":accounting.events"',
            'requirement("numpy")',
            'requirement("scipy")',
        ],
        "dp_train": [],
        "dp_train.noise": ['":dp_train.noise.secure"'],
        "dp_train.noise.secure": ['":accounting"', '":dp_train.values"'],
        "dp_train.values": ['requirement("tensorflow")'],
    }


def test_target_of_a_module_is_written_as_bazel_reads_it(tree):
    assert (
        "py_library(\n"
        '    name = "dp_train.noise.secure",\n'
        '    srcs = ["dp_train/noise/secure.py"],\n'
        "    deps = [\n"
        '        ":accounting",\n'
        '        ":dp_train.values",\n'
        "    ],\n"
        ")\n"
    ) in (tree / "BUILD").read_text()


def test_check_passes_on_a_current_file_and_changes_nothing(tree):
    before = (tree / "BUILD").read_text()

    assert write_build.main(["--check"], tree) == 0
    assert (tree / "BUILD").read_text() == before


def test_check_finds_a_missing_dependency_and_names_the_fix(tree, capsys):
    build = tree / "BUILD"
    planted = build.read_text().replace('        requirement("scipy"),\n', "")
    assert planted != build.read_text()
    build.write_text(planted)

    assert write_build.main(["--check"], tree) == 1
    assert "Run: make build-file" in capsys.readouterr().err


def test_check_finds_an_import_that_was_added(tree):
    (tree / "accounting" / "events.py").write_text("import numpy\n")

    assert write_build.main(["--check"], tree) == 1


def test_import_of_an_undeclared_distribution_is_refused(tree, capsys):
    (tree / "accounting" / "events.py").write_text("import pandas\n")

    assert write_build.main(["--check"], tree) == 1
    assert "events.py imports pandas" in capsys.readouterr().err


def test_import_of_a_module_that_does_not_exist_is_refused(tree, capsys):
    (tree / "accounting" / "events.py").write_text("from accounting.lost import a\n")

    assert write_build.main(["--check"], tree) == 1
    assert "accounting.lost, which no target provides" in capsys.readouterr().err


def test_circle_is_refused_and_named(tree, capsys):
    (tree / "accounting" / "events.py").write_text("from accounting import rdp\n")

    assert write_build.main(["--check"], tree) == 1
    assert "accounting.rdp" in capsys.readouterr().err


def test_known_distributions_are_declared_in_setup():
    setup = (ROOT / "setup.py").read_text()

    for name in write_build.DISTRIBUTIONS.values():
        assert f'"{name}>=' in setup
