"""Packaging: the files that repeat facts of pyproject.toml agree with it."""

import re
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Packages that have another name on conda-forge.
CONDA_NAMES = {"matplotlib": "matplotlib-base", "torch": "pytorch"}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def requirement(line):
    """Return name and minimum version of a requirement such as "torch>=2.6"."""
    name, _, version = re.sub(r"\s", "", line).partition(">=")
    return CONDA_NAMES.get(name, name), version


def test_the_conda_recipe_has_the_requirements_and_the_version_of_the_package():
    lines = text("packaging/conda/meta.yaml").splitlines()
    assert f'{{% set version = "{PROJECT["version"]}" %}}' in lines
    plain = "\n".join(line for line in lines if not line.startswith("{%"))
    recipe = yaml.safe_load(
        plain.replace("{{ version }}", PROJECT["version"]).replace("{{ PYTHON }}", "python")
    )
    run = dict(map(requirement, recipe["requirements"]["run"]))
    assert run.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    assert run == dict(map(requirement, PROJECT["dependencies"]))
    assert recipe["build"]["entry_points"] == [f"{k} = {v}" for k, v in PROJECT["scripts"].items()]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["package"] == {"name": PROJECT["name"], "version": PROJECT["version"]}


def test_the_citation_file_is_complete_and_current():
    citation = yaml.safe_load(text("CITATION.cff"))
    required = {"cff-version", "message", "title", "authors"}
    known = required | {"type", "version", "date-released", "license", "abstract", "keywords", "doi", "url"}
    assert required <= citation.keys() <= known
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert all(author.keys() & {"name", "family-names"} for author in citation["authors"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", citation["date-released"])
    assert f"## [{citation['version']}] – {citation['date-released']}" in text("CHANGELOG.md")


def test_the_workflow_runs_both_targets_on_every_supported_python():
    workflow = yaml.safe_load(text(".github/workflows/ci.yml"))
    job = workflow["jobs"]["test"]
    classifiers = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert job["strategy"]["matrix"]["python"] == classifiers == ["3.11", "3.12", "3.13", "3.14"]
    targets = [step["run"].removeprefix("make ") for step in job["steps"] if "run" in step]
    assert targets == ["check", "test"]
    makefile = text("Makefile")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_metadata_have_no_placeholders():
    assert {"name", "version", "description", "readme", "license", "authors", "keywords"} <= PROJECT.keys()
    assert not re.search(r"example\.|TODO|your-|<", str(PROJECT))
    for url in PROJECT.get("urls", {}).values():
        assert url.startswith("https://")


def test_extras_never_name_a_version_of_torch():
    """An extra that pins torch would replace a CPU build without asking."""
    for name, lines in PROJECT["optional-dependencies"].items():
        assert not [line for line in lines if re.match(r"torch\b", line)], name
    assert "torch-constraints.txt" in text("docs/installation.md")
