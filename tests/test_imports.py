"""The layering of the package: imports point down only, found by parsing every module.

An import inside a function or under `TYPE_CHECKING` counts as any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "samebits"

# Lowest first. A module may import its own part and every part in a row below its own. Parts that share a
# row do not know each other, but for the pairs in SIBLINGS.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("numerics",),
    ("sampling_params", "config", "tables", "client", "tokenizer_files"),
    ("plan", "grammar"),
    ("layers",),
    ("models",),
    ("schedule", "cache"),
    ("text", "engine"),
    ("generation",),
    ("llm",),
    ("server", "verify", "bench", "audit"),
    ("cli", "commands", "__main__"),
)
SIBLINGS = {("schedule", "cache"), ("cli", "commands"), ("__main__", "cli")}
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

# Libraries that only one part of the package may know.
CONFINED = {
    "tokenizers": {"text", "tokenizer_files"},
    "llguidance": {"grammar"},
    "jinja2": {"text"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "numba": {"numerics"},
    "llvmlite": {"numerics"},
    "triton": {"numerics"},
    "zmq": {"engine", "server"},
    "transformers": {"bench"},
}

# What the package's own `__init__` offers, and the part that each name really is.
ROOT_NAMES = {"LLM": "llm", "SamplingParams": "sampling_params", "__version__": None}


@dataclass(frozen=True)
class Import:
    """One imported module: dotted name, and where."""

    target: str
    line: int


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every module that `source` imports, wherever in it, relative names resolved against `module`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base_name = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                yield Import(f"{base_name}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and _is_import_module(node.func):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield Import(str(argument.value), node.lineno)


def _is_import_module(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def part_of(target: str) -> str | None:
    """`samebits.engine.step` -> `engine`; None for other libraries and for harmless names of the root."""
    names = target.split(".")
    if names[0] != "samebits" or len(names) == 1:
        return None
    if names[1] in RANK:
        return names[1]
    if names[1].endswith("Error"):
        return "errors"
    if names[1] in ROOT_NAMES:
        return ROOT_NAMES[names[1]]
    raise AssertionError(f"{target}: not in the table of layers; give it a place there")


def faults_of(source: str, module: str, is_package: bool = False) -> list[str]:
    """What `module` imports against the rules, one line each."""
    part = module.split(".")[1]
    faults = []
    for found in imports_of(source, module, is_package):
        target = part_of(found.target)
        library = found.target.split(".")[0]
        if library in CONFINED and part not in CONFINED[library]:
            faults.append(f"{module}:{found.line} imports {library}, which only {CONFINED[library]} may")
        if target is None or target == part or (part, target) in SIBLINGS:
            continue
        if RANK[target] >= RANK[part]:
            faults.append(f"{module}:{found.line} imports {found.target}, which is not below {part}")
    return faults


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module but the package's `__init__`."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(names[:-1] if names[-1] == "__init__" else names)
        if module != "samebits":
            found.append((module, path))
    return found


def test_every_module_has_a_place() -> None:
    unplaced = sorted({module.split(".")[1] for module, _ in modules()} - set(RANK))
    assert not unplaced, f"give these a row in LAYERS: {unplaced}"


def test_imports_point_down() -> None:
    faults = [
        fault
        for module, path in modules()
        for fault in faults_of(path.read_text(), module, path.name == "__init__.py")
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("samebits.numerics.cpu.gemm", "from samebits.config import EngineConfig"),
        ("samebits.numerics.cpu.gemm", "from ...plan import Plan"),
        ("samebits.engine.step", "def late():\n    import samebits.server.app"),
        ("samebits.engine.step", "from samebits import server"),
        ("samebits.engine.step", "from samebits import LLM"),
        ("samebits.engine.step", "from ..text import tokenizer"),
        ("samebits.engine.step", "import tokenizers"),
        ("samebits.cache.pages", "from samebits.schedule import request"),
        (
            "samebits.models.load",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import samebits.engine",
        ),
        ("samebits.verify.modes", "import importlib\nimportlib.import_module('samebits.server.app')"),
        ("samebits.layers", "from samebits.models.spec import ModelSpec"),
        ("samebits.errors", "import samebits.numerics"),
    ],
)
def test_a_planted_upward_import_is_found(module: str, source: str) -> None:
    assert len(faults_of(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("samebits.server.app", "from samebits.engine import engine\nimport starlette"),
        ("samebits.schedule.scheduler", "from samebits.cache.pages import PageAllocator"),
        (
            "samebits.numerics.cpu.gemm",
            "from ..contract import CONTRACT\nfrom samebits.errors import NumericsError",
        ),
        ("samebits.commands.verify", "from samebits import LLM, SamebitsError, __version__"),
    ],
)
def test_a_downward_import_is_not(module: str, source: str) -> None:
    assert faults_of(source, module) == []


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(AssertionError, match="table of layers"):
        faults_of("from samebits.novelty import thing", "samebits.engine.step")
