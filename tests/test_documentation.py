"""The documentation is run: every Python block of README and CONTRIBUTING, every command's spelling."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from envariant.algorithms import RECIPES, catalogue

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_python_blocks_run_in_order(name):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


def test_every_option_the_readme_uses_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^envariant (.+?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        command = line.split()[: 2 if line.startswith("data") else 1]
        done = subprocess.run(
            [sys.executable, "-m", "envariant", *command, "--help"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for option in re.findall(r"(?<= )--?[a-z][a-z-]*", line):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", done.stdout), (line, option)


def test_the_tree_in_the_readme_is_the_tree_there_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("src/envariant/\n") :].split("```")[0]
    named = set(re.findall(r"^  (\S+)", tree, re.MULTILINE))
    there = {
        p.name + ("/" if p.is_dir() else "")
        for p in (ROOT / "src" / "envariant").iterdir()
        if not p.name.startswith(("__", "py.typed"))
    }
    assert named == there


def test_the_page_of_algorithms_is_what_the_parts_say():
    """Made anew by `envariant algorithms --markdown > docs/algorithms.md`."""
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert page == catalogue.markdown()
    for each in map(catalogue.describe, RECIPES.values()):
        unsaid = [name for name, *_, meaning in each.settings if not meaning]
        assert not unsaid, f"{each.name}: what {unsaid} mean is not among the attributes"
