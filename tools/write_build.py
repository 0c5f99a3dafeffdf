"""Writes BUILD: one Bazel target per library module, deps from its real imports.

    python tools/write_build.py            writes BUILD
    python tools/write_build.py --check    exits 1 when BUILD is not up to date

A target has the dotted name of its module. A module depends on the targets that its
import statements name, wherever in the file they stand; a package depends on those of
its __init__.py. Importing a module also runs the __init__.py above it, but that is no
dependency here: it imports its children, and Bazel allows no circle.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("accounting", "dp_train")
BINARIES = {"compute_dp_sgd_privacy": "accounting.compute_dp_sgd_privacy"}

# Name in an import statement -> name of the distribution in setup.py.
DISTRIBUTIONS = {
    "cryptography": "cryptography",
    "h5py": "h5py",
    "keras": "keras",
    "matplotlib": "matplotlib",
    "absl": "absl-py",
    "numpy": "numpy",
    "scipy": "scipy",
    "tensorboard": "tensorboard",
    "tensorflow": "tensorflow",
}

HEADER = """\
# Written by tools/write_build.py from the imports: run `make build-file`, do not edit.

load("@pip//:requirements.bzl", "requirement")
load("@rules_python//python:defs.bzl", "py_binary", "py_library")

package(default_visibility = ["//visibility:public"])
"""


def find_modules(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Dotted module name -> file relative to root, sorted by name."""
    modules = {}
    for package in packages:
        for path in (root / package).rglob("*.py"):
            relative = path.relative_to(root)
            parts = relative.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = relative
    return dict(sorted(modules.items()))


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[str, ...]]:
    """What each import may mean, in absolute dotted names, the likelier first.

    `from a import b` gives (a.b, a): only the caller knows whether b is a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                kept = parents[: len(parents) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            yield from ((f"{base}.{alias.name}", base) for alias in node.names)


def resolve(
    names: tuple[str, ...], modules: Mapping[str, Path], importer: Path
) -> str | None:
    """The dep that an import stands for: a label, a requirement, or None (Python's).

    Raises:
        ValueError: it is neither ours, nor Python's, nor a known distribution.
    """
    for name in names:
        if name in modules:
            return f'":{name}"'
    top = names[0].partition(".")[0]
    if top in sys.stdlib_module_names:
        return None
    if top in DISTRIBUTIONS:
        return f'requirement("{DISTRIBUTIONS[top]}")'
    raise ValueError(
        f"{importer} imports {names[-1]}, which no target provides. BUILD cannot name "
        "the dependency. Write the module, or declare its distribution in setup.py and "
        "in DISTRIBUTIONS of tools/write_build.py."
    )


def dependencies(root: Path, modules: Mapping[str, Path]) -> dict[str, list[str]]:
    """Module name -> its deps as they stand in BUILD, ours first, sorted.

    Raises:
        ValueError: an import stands for nothing known, or modules form a circle.
    """
    result: dict[str, list[str]] = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse((root / path).read_text(encoding="utf-8"), str(path))
        found = {resolve(n, modules, path) for n in imported_names(tree, package)}
        result[name] = sorted(dep for dep in found if dep not in (None, f'":{name}"'))
    graph = {f'":{name}"': deps for name, deps in result.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = " <- ".join(label.strip('":') for label in error.args[1])
        raise ValueError(
            f"Modules import each other: {circle}. Bazel allows no circle. Move what "
            "they share to a lower floor."
        ) from None
    return result


def rule(kind: str, **attributes: str | list[str]) -> str:
    """The text of one target; an empty list is left out."""
    lines = [f"{kind}("]
    for key, value in attributes.items():
        if isinstance(value, str):
            lines.append(f'    {key} = "{value}",')
        elif len(value) == 1:
            lines.append(f"    {key} = [{value[0]}],")
        elif value:
            lines.append(f"    {key} = [")
            lines += [f"        {item}," for item in value]
            lines.append("    ],")
    return "\n".join([*lines, ")\n"])


def build_text(
    root: Path,
    packages: Iterable[str] = PACKAGES,
    binaries: Mapping[str, str] = BINARIES,
) -> str:
    """All of BUILD for the tree under root; the same text for the same imports."""
    modules = find_modules(root, packages)
    blocks = [HEADER]
    for name, deps in dependencies(root, modules).items():
        sources = [f'"{modules[name].as_posix()}"']
        blocks.append(rule("py_library", name=name, srcs=sources, deps=deps))
    for name, module in binaries.items():
        if module in modules:
            main_file = modules[module].as_posix()
            blocks.append(
                rule(
                    "py_binary",
                    name=name,
                    srcs=[f'"{main_file}"'],
                    main=main_file,
                    deps=[f'":{module}"'],
                )
            )
    return "\n".join(blocks)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    arguments = parser.parse_args(argv)
    target = root / "BUILD"
    try:
        text = build_text(root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not arguments.check:
        target.write_text(text, encoding="utf-8")
        return 0
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return 0
    print(
        "BUILD does not match the imports of the library modules. Bazel would build "
        "with wrong dependencies. Run: make build-file",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
