"""Installs dp-train: the packages dp_train and accounting, and one command."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Read as text: importing the package would need its dependencies while installing them.
VERSION = re.search(
    r'^__version__ = "([^"]+)"$',
    (ROOT / "accounting" / "_version.py").read_text(encoding="utf-8"),
    re.MULTILINE,
)
if VERSION is None:
    raise RuntimeError('accounting/_version.py has no line __version__ = "..."')

README = ROOT / "README.md"

setup(
    name="dp-train",
    version=VERSION.group(1),
    description="Differentially private training for Keras 3 on TensorFlow",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="The dp-train authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["accounting*", "dp_train*"]),
    # Ranges whose lowest and newest versions were tried.
    install_requires=[
        # the traced graph and its gradients; dp_train.host uses names of this version
        "tensorflow>=2.21,<2.22",
        # fit, layers, optimizers; dp_train.host uses names of this version
        "keras>=3.15,<3.16",
        # the line that fit logs
        "absl-py>=2",
        # the ledger in files of weights, which Keras reads by it as well
        "h5py>=3.11",
        # noise, sampling, accounting on arrays
        "numpy>=2.1,<3",
        # quadrature and special functions of the accountants
        "scipy>=1.13,<2",
        # the keystream (AES in counter mode) behind the noise
        "cryptography>=43",
    ],
    extras_require={
        # pictures of the command and of the tutorials
        "plot": ["matplotlib>=3.11,<4"],
        # to look at the event files; writing them needs nothing more
        "tensorboard": ["tensorboard>=2.21,<2.22"],
        # an independent oracle for distributions; does not import without tf-keras
        "probability": ["tensorflow-probability>=0.25,<0.26", "tf-keras>=2.21,<2.22"],
        "dev": [
            "build>=1.2",  # wheel and source distribution
            "dp-accounting>=0.6,<0.7",  # oracle for every epsilon
            "hypothesis>=6.170,<7",  # properties over generated inputs
            "import-linter>=2.17,<3",  # the floor plan
            "mpmath>=1.3,<2",  # formulas to many digits
            "mypy>=2.4,<2.5",  # types
            "pre-commit>=4",  # the same checks before each commit
            "pytest>=9,<10",  # the tests
            "pytest-xdist>=3.8,<4",  # the tests on several cores
            "ruff>=0.17,<0.18",  # lint and format
        ],
    },
    entry_points={
        "console_scripts": [
            "compute_dp_sgd_privacy = accounting.compute_dp_sgd_privacy:main",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Security",
    ],
)
