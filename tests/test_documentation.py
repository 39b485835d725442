"""Tests of the documentation: code blocks run, commands exist, the layout and generated pages are current."""

import ast
import doctest
import json
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from importlib import import_module, resources
from pathlib import Path

import pytest

import envariant
from envariant.algorithms import RECIPES, Composition, catalogue, recipe
from envariant.core.errors import EnvariantWarning
from envariant.core.schedules import Constant, Schedule
from envariant.studies.study import read

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/comparisons.md",
    "docs/evaluation.md",
    "docs/serving.md",
    pytest.param("docs/guide/averaging.md", marks=pytest.mark.verify),
    "docs/guide/closed_forms.md",
    "docs/guide/losses_and_models.md",
    "docs/guide/groups.md",
    "docs/guide/training.md",
    "docs/guide/own_loop.md",
    "docs/guide/images.md",
]
# Packages whose `__all__` is the public interface; the other packages are reached through them.
PUBLIC_PACKAGES = [
    "envariant",
    "envariant.algorithms",
    "envariant.analysis",
    "envariant.closed_forms",
    "envariant.comparison",
    "envariant.data",
    "envariant.evaluation",
    "envariant.models",
    "envariant.objectives",
    "envariant.predictors",
    "envariant.reporting.charts",
    "envariant.reproductions",
    "envariant.saved_model",
    "envariant.studies",
    "envariant.studies.selection",
    "envariant.testing",
]
TRAINING = {"train", "InvariantClassifier", "InvariantRegressor"}


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def run_blocks(blocks: list[str], page: str) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "documentation"}
    with warnings.catch_warnings():
        # Remarks to the user, such as environments without a test, are part of an example.
        warnings.simplefilter("ignore", EnvariantWarning)
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)
    return namespace


def idle_schedules(code: str, namespace: dict[str, object]) -> list[str]:
    """Return the schedules in `code` that keep their initial value during the whole documented run.

    Args:
        code: Source with calls of `train` or of an estimator; calls without `steps` are skipped.
        namespace: Variables with which the code has been run.
    """
    idle = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        if name not in TRAINING or "steps" not in options:
            continue
        position = 1 if name == "train" else 0
        source = call.args[position] if len(call.args) > position else options["algorithm"]
        algorithm = eval(compile(ast.Expression(source), "algorithm", "eval"), namespace)
        steps = ast.literal_eval(options["steps"])
        composition = algorithm if isinstance(algorithm, Composition) else recipe(algorithm).default
        for part in composition.parts:
            coefficient = getattr(part, "coefficient", None)
            if isinstance(coefficient, Schedule) and not isinstance(coefficient, Constant):
                resolved = coefficient.resolve(steps) if hasattr(coefficient, "resolve") else coefficient
                if len({resolved(step) for step in range(steps)}) == 1:
                    idle.append(f"{ast.unparse(call)}: {part.name} {coefficient}")
    return idle


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run_in_order_and_their_schedules_take_effect(page):
    blocks = python_blocks(page)
    assert blocks
    namespace = run_blocks(blocks, page)
    assert idle_schedules("\n".join(blocks), namespace) == []


def test_a_schedule_that_starts_after_the_last_step_is_detected():
    assert idle_schedules("train(data, 'vrex', steps=100)", {}) != []
    assert idle_schedules("InvariantClassifier('vrex', steps=20)", {}) != []
    assert idle_schedules("train(data, 'vrex', steps=101)", {}) == []


@pytest.mark.parametrize("name", envariant.__all__)
def test_schedules_in_docstring_examples_take_effect(name):
    examples = doctest.DocTestParser().get_examples(getattr(envariant, name).__doc__ or "")
    assert [idle for example in examples for idle in idle_schedules(example.source, {})] == []


@pytest.mark.parametrize(("page", "fewest"), [("README.md", 1), ("docs/guide/command_line.md", 10)])
def test_every_command_and_option_exists(page, fewest, here):
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = re.findall(r"^envariant (.+?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(lines) >= fewest
    for line in lines:
        command = line.split()[: 2 if line.startswith(("data", "runs")) else 1]
        done = here(*command, "--help")
        assert done.returncode == 0
        for option in re.findall(r"(?<= )--?[a-z][a-z-]*", line):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", done.stdout), (line, option)


@pytest.mark.verify
def test_commands_of_the_readme_run_as_printed(tmp_path):
    """The first result of a newcomer; installing and `make` are what led here."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in re.findall(r"^envariant .+$", text, re.MULTILINE):
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(line)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "comparisons" / "heart-disease" / "report.html").is_file()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_every_link_of_the_readme_leads_to_a_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_layout_in_the_guide_lists_every_package_in_the_order_of_the_import_layers():
    text = (ROOT / "docs" / "guide" / "engine.md").read_text(encoding="utf-8")
    tree = text[text.index("src/envariant/\n") :].split("```")[0]
    listed = re.findall(r"^  ([\w./]+)", tree, re.MULTILINE)
    packages = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "src" / "envariant").iterdir()
        if not path.name.startswith(("__", "py.typed"))
    }
    assert set(listed) == packages
    assert len(listed) == len(packages)

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [re.split(r"\s*[|:]\s*", layer) for layer in contracts["contracts"][0]["layers"]]
    height = {name: number for number, names in enumerate(layers) for name in names}
    order = [height[name.removesuffix("/").removesuffix(".py")] for name in listed]
    assert order == sorted(order)


def test_every_path_in_the_contributing_guide_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("## Where to add what") : text.index("## Other packages")]
    paths = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", table)
    assert len(paths) > 20
    missing = [
        path
        for path in (path.removesuffix("NAME.py") for path in paths)
        if not (ROOT / path).exists() and not (ROOT / "src" / "envariant" / path).exists()
    ]
    assert missing == []


def test_study_in_the_documentation_is_valid(tmp_path):
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    (tmp_path / "first.toml").write_text(text.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    assert read(tmp_path / "first.toml").n_trials == 8


def test_stored_descriptions_of_algorithms_are_up_to_date():
    """Regenerate the file with `envariant algorithms --json > new`, and move it to its place."""
    stored = json.loads(
        resources.files("envariant").joinpath("algorithms", "catalogue.json").read_text("utf-8")
    )
    assert stored == {name: catalogue.describe(recipe).to_dict() for name, recipe in RECIPES.items()}
    assert list(stored) == list(RECIPES)


def test_page_of_algorithms_is_up_to_date_and_describes_every_setting():
    """Regenerate the page with `envariant algorithms --markdown > docs/algorithms.md`."""
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert page == catalogue.markdown()
    for entry in map(catalogue.describe, RECIPES.values()):
        undocumented = [name for name, *_, meaning in entry.settings if not meaning]
        assert not undocumented, f"{entry.name}: {undocumented} are not described under Attributes"


def test_every_public_name_has_a_page_in_the_reference(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from _api import MODULES, entries

    documented = {
        id(getattr(import_module(module), name)) for _, module, names in entries() for name in names
    }
    modules = [module for group in MODULES.values() for module in group]
    public = [
        f"{package}.{name}"
        for package in PUBLIC_PACKAGES
        for name in import_module(package).__all__
        if callable(getattr(import_module(package), name))
        and id(getattr(import_module(package), name)) not in documented
    ]
    assert public == []
    assert len(modules) == len(set(modules))


def test_every_example_of_the_gallery_is_a_task_with_a_picture_and_a_limit():
    examples = sorted((ROOT / "examples").glob("plot_*.py"))
    assert len(examples) >= 11
    for path in examples:
        text = path.read_text(encoding="utf-8")
        assert "admonition:: When not" in text, path
        assert re.search(r"^(chart|figure)(\.show\(\))?$", text, re.MULTILINE), path
