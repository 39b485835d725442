"""Setup for all tests: one thread per process and run-time checks of shape annotations."""

import ast
import gc
import os
import subprocess
import sys

# Set before PyTorch is imported, because PyTorch reads it once. The tests' matrices are tiny, and two
# processes whose threads wait for each other are about twenty times slower than one thread per process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from dataclasses import is_dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import jaxtyped

# Collecting the tests creates a million objects that stay, and searching them for garbage takes seconds.
gc.disable()

# No test depends on the speed of the machine.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# These functions validate shapes themselves; the tests check their error messages.
_VALIDATE_SHAPES = {"Environment.__init__", "RandomAffine.__call__"}


def has_shapes(function: Callable[..., Any]) -> bool:
    """Return whether the annotations of a function contain array shapes.

    Other functions are left alone: they take names and settings from users and raise their own errors.
    """
    return function.__qualname__ not in _VALIDATE_SHAPES and any(
        "jaxtyping." in repr(hint) for hint in function.__annotations__.values()
    )


def checked(definition: Any) -> Any:
    """Check the annotations of a function, or of a data class, at every call if they contain array shapes."""
    function = definition
    if isinstance(definition, type):
        function = vars(definition).get("__init__") if is_dataclass(definition) else None
    if function is None or not has_shapes(function):
        return definition
    return jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))(definition)


class _Checking(ast.NodeTransformer):
    """Decorate every function (below other decorators) and every class (above them) with `checked`."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        node.body.insert(1, ast.Import([ast.alias("conftest")]))  # below the docstring
        return ast.fix_missing_locations(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.decorator_list.append(self._decorator(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, self._decorator(node))
        return node

    def _decorator(self, node: ast.AST) -> ast.expr:
        name = ast.Attribute(ast.Name("conftest", ast.Load()), "checked", ast.Load())
        return ast.copy_location(name, node)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        tree = _Checking().visit(ast.parse(self.get_data(self.path)))
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder(PathFinder):
    """Finder of the package's modules whose annotations may contain array shapes.

    Unlike the import hook of jaxtyping, it wraps no function without shapes, which would make calls slower.
    """

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = super().find_spec(fullname, path, target) if fullname.startswith("envariant.") else None
        if spec is None or spec.origin is None or b"jaxtyping" not in Path(spec.origin).read_bytes():
            return None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


# During tests only. Nothing may import the package before this line.
sys.meta_path.insert(0, _Finder)


def pytest_collection_finish() -> None:
    """Search only the objects of the tests themselves for garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in this process, because a new process takes seconds to start."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        from envariant.cli import main

        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run
