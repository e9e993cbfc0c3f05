"""The source as data: modules, their imports, functions and texts. For the tests of this folder."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DAEMON = ROOT / "daemon"
SQL = ROOT / "sql"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Import:
    """One import; `at_run` is false for what only type checkers see."""

    name: str
    line: int
    at_run: bool
    at_top: bool


@dataclasses.dataclass(frozen=True)
class Module:
    """One file of Python."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def texts(self) -> set[str]:
        return {
            n.value for n in ast.walk(self.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }


def load() -> dict[str, Module]:
    """Return the modules of the daemon by name."""
    paths = {_name(path): path for path in sorted(DAEMON.rglob("*.py"))}
    return {name: _module(name, path, set(paths)) for name, path in paths.items()}


def _name(path: Path) -> str:
    parts = path.relative_to(DAEMON).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module(name: str, path: Path, known: set[str]) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return Module(name, path, tree, tuple(_imports(tree, known)))


def _imports(tree: ast.Module, known: set[str]):
    for_types, in_functions = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types.update(ast.walk(node))
        if isinstance(node, Function):
            in_functions.update(ast.walk(node))
    for node in ast.walk(tree):
        at_run, at_top = node not in for_types, node not in in_functions
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_run, at_top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(inner if inner in known else str(node.module), node.lineno, at_run, at_top)
