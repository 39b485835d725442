"""Limits on the source: import graph, file length, function length and number of parameters.

They read the source as text and import nothing.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
SOURCES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SRC.glob("envariant/**/*.py"))
}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 12

# Files that are one table with one entry per algorithm, or one report with one function per section.
TABLES = {"envariant.algorithms.recipes", "envariant.reproductions.sjtu_2023"}

# Functions that take the options of a run by keyword: the API and the commands.
TAKE_RUN_OPTIONS = {
    "envariant.cli.compare.compare",
    "envariant.cli.sweep.sweep",
    "envariant.cli.train.train",
    "envariant.comparison.compare.compare",
    "envariant.training.train.train",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parse(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Yield the package's modules that `tree` imports, at module level and inside functions."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SOURCES)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if name in SOURCES or base in SOURCES:
                    yield name if name in SOURCES else base


def functions(module: str) -> Iterator[tuple[str, Function]]:
    """Yield every function of a module with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function | ast.ClassDef):
                name = f"{prefix}.{child.name}"
                if isinstance(child, Function):
                    yield name, child
                yield from walk(child, name)
            else:
                yield from walk(child, prefix)

    yield from walk(parse(module), module)


def docstring_lines(tree: ast.AST) -> set[int]:
    """Return the line numbers of all docstrings in `tree`."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            lines |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def code_lines(module: str) -> set[int]:
    """Return the line numbers of a module that hold code: no blank lines, comments or docstrings."""
    text = SOURCES[module].read_text(encoding="utf-8")
    ignored = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    }  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in ignored:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(ast.parse(text))


def above(sizes: dict[str, int], limit: int) -> str:
    """Return one line per entry above the limit."""
    return "\n".join(f"{name}: {size} > {limit}" for name, size in sizes.items() if size > limit)


def test_import_graph_has_no_cycle():
    """Count imports at module level and inside functions, so that a late import cannot hide a cycle."""
    graph = {module: set(imported(module, parse(module))) - {module} for module in SOURCES}
    assert graph["envariant.core.tasks"], "the graph has no edges"
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as cycle:
        pytest.fail(" → ".join(reversed(cycle.args[1])))


def test_only_the_lazy_exports_import_under_type_checking():
    hidden = [
        f"{module}:{node.lineno}"
        for module in SOURCES
        if module not in ("envariant", "envariant.analysis", "envariant.closed_forms", "envariant.predictors")
        for node in ast.walk(parse(module))
        if isinstance(node, ast.If)
        and any(getattr(n, "id", getattr(n, "attr", "")) == "TYPE_CHECKING" for n in ast.walk(node.test))
        and list(imported(module, ast.Module(node.body, [])))
    ]
    assert not hidden, ", ".join(hidden)


def test_files_are_short():
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in SOURCES.items()
        if name not in TABLES
    }
    assert not (long := above(lengths, MAX_FILE_LINES)), long


def test_functions_are_short():
    lengths: dict[str, int] = {}
    for module in SOURCES:
        code = code_lines(module)
        for name, function in functions(module):
            lengths[name] = len(code & set(range(function.lineno, (function.end_lineno or 0) + 1)))
    assert len(lengths) > 500
    assert not (long := above(lengths, MAX_FUNCTION_LINES)), long


def test_public_functions_have_few_parameters():
    counts: dict[str, int] = {}
    for module in SOURCES:
        for name, function in functions(module):
            parts = name.split(".")
            if all(not part.startswith("_") or part == "__init__" for part in parts):
                arguments = function.args
                names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                counts[name] = len([n for n in names if n not in ("self", "cls")])
    assert len(counts) > 300
    for name in TAKE_RUN_OPTIONS:
        counts.pop(name, None)
    assert not (long := above(counts, MAX_PARAMETERS)), long
