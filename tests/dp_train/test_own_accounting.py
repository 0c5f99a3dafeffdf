"""Users have packages named accounting too; what is found is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["accounting.py", "accounting/__init__.py"])
@pytest.mark.parametrize("text", ["", "class Ledger: pass", "__version__ = '3'"])
def test_foreign_package_of_the_same_name_is_named(tmp_path, name, text) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    place.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "import dp_train"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: `import accounting` finds {place}")
    assert "Rename yours" in last


def test_folder_that_is_no_package_does_not_hide_it(tmp_path) -> None:
    (tmp_path / "accounting").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import accounting; print(accounting.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert done.stdout.strip() == str(ROOT / "accounting" / "__init__.py")
