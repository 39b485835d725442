"""Console output of `envariant compare`."""

from pathlib import Path
from types import SimpleNamespace

from envariant.cli import compare
from envariant.reporting.tables import TextTable


def test_next_steps_name_the_command_that_adapts(monkeypatch, capsys):
    table = TextTable(("method",), (("erm",),))
    monkeypatch.setattr("envariant.comparison.page.methods_table", lambda results: table)
    step = "Label 20 rows of a new hospital and adapt the saved model to them (`SavedModel.adapt`)."
    compare._print(
        SimpleNamespace(
            results=None,
            verdict="Use ERM",
            recommendation=SimpleNamespace(next_steps=(step,)),
            folder=Path("heart"),
            page=Path("heart/report.html"),
            seconds=1.0,
        ),
        json=False,
    )
    assert "to them (`envariant adapt heart/model labels.csv`)." in capsys.readouterr().out
