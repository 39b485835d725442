"""A notebook of the README's examples: every object shows a table or a picture, and no page of numbers."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.verify

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
nbconvert = pytest.importorskip("nbconvert")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent.parent
# Cells that show every kind of object, after those of the README.
MORE = """
import envariant
digits = envariant.data.colored_digits()
digits
digits.sample(0)
digits.plot()
run = envariant.train(digits, "vrex", model="mlp(hidden=16)", steps=100, replicas=2)
run
run.record
run.record.spec
run.plot()
envariant.score_table([run, envariant.train(digits, "erm", model="mlp(hidden=16)", steps=100, replicas=2)])
study = envariant.Study(digits, ("erm", "vrex"), replicas=2, settings={"steps": 20})
study
results = study.run()
results
results.table()
results.plot()
results.compare()
"""
PICTURES = {
    "image/png",
    "image/svg+xml",
    "application/vnd.vegalite.v5+json",
    "application/vnd.vegalite.v6+json",
}
# Findings of the data check are printed, one sentence or two each.
FINDING = re.compile(r"([a-z ]+: .*\.\n)+")
# Numbers, texts and tuples show themselves as text.
PLAIN = re.compile(r"""-?[\d.]+|'[^\n]*'|"[^\n]*"|\w+\(.{0,200}\)""", re.DOTALL)


def cells(code: str) -> list[str]:
    """Split code so that the value of every expression is the last of a cell, also in tuples."""
    found, rest = [], []
    for node in ast.parse(code).body:
        if not isinstance(node, ast.Expr):
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
            rest.append("\n".join(code.splitlines()[first - 1 : node.end_lineno]))
            continue
        parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        for part in parts:
            found.append("\n".join([*rest, ast.unparse(part)]))
            rest = []
    return [*found, *(["\n".join(rest)] if rest else [])]


def test_every_object_of_the_readme_shows_a_table_or_a_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [*re.findall(r"```python\n(.*?)```", readme, re.DOTALL), MORE]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for block in blocks for cell in cells(block)]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = 0
    for cell in notebook.cells:
        for output in cell.outputs:
            if output.output_type == "stream":
                assert len(output.text.splitlines()) <= 12, cell.source
                continue
            data = output.data
            text = data.get("text/plain", "")
            is_rich = (
                "<table" in data.get("text/html", "")
                or "<img" in data.get("text/html", "")
                or PICTURES & data.keys()
            )
            is_rich = is_rich or "vega" in data.get("text/html", "")
            assert (
                is_rich
                or PLAIN.fullmatch(text)
                or FINDING.fullmatch(text)
                or "<progress" in data.get("text/html", "")
            ), (
                cell.source,
                text[:500],
            )
            assert "tensor(" not in text
            shown += bool(is_rich)
    assert shown >= 14
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert page.count('class="envariant"') >= 8
    (tmp_path / "readme.html").write_text(page, encoding="utf-8")
