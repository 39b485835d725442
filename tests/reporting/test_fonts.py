"""Figures with names in any script: installed fonts are used; without one, SVG keeps the text."""

import warnings
from types import SimpleNamespace

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from envariant.core.errors import EnvariantWarning
from envariant.reporting import charts, figures, fonts

CHINESE, THAI, EMOJI = "年龄", "ประเทศ", "🏥"


def drawing(*names):
    figure = Figure()
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), [figures.plain_text(name) for name in names])
    return figure


@pytest.fixture
def only_bundled(monkeypatch):
    """Hide all fonts except DejaVu Sans, which has no Chinese, Thai or emoji."""
    own = [font for font in fonts.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(fonts, "fontManager", SimpleNamespace(ttflist=own))
    fonts._families.cache_clear()
    yield
    fonts._families.cache_clear()


@pytest.mark.parametrize("name", [CHINESE, THAI, EMOJI])
def test_without_a_font_svg_keeps_the_text_and_issues_no_warning(only_bundled, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = figures.svg(drawing(name, "a<b>"))
    assert f">{name}</text>" in text
    assert ">a&lt;b&gt;</text>" in text, "text of a user stays escaped"


def test_without_a_font_png_warns_once_and_names_the_characters(only_bundled):
    with pytest.warns(EnvariantWarning) as caught:
        figures.png(drawing(CHINESE))
    (message,) = [str(each.message) for each in caught]
    assert "'年龄'" in message
    assert "SVG" in message


def test_an_installed_font_is_used_and_text_becomes_outlines():
    # Computer Modern has no Cyrillic letters, DejaVu Sans, which is always installed, has them.
    with mpl.rc_context({"font.family": "cmr10", "axes.formatter.use_mathtext": True}):
        figure = drawing("Больница")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text = figures.svg(figure)
            assert figures.png(figure)[:4] == b"\x89PNG"
    assert "<text" not in text
    (axes,) = figure.axes
    families = axes.get_yticklabels()[0].get_fontfamily()
    assert families[0] == "cmr10"
    assert len(families) == 2
    assert fonts._available(fonts.findfont(families[1]), frozenset("Больница")) == set("Больница")


def test_latin_text_keeps_its_font_and_is_outlines():
    figure = drawing("Ünïcødé", "plain")
    assert "<text" not in figures.svg(figure)
    assert {tuple(label.get_fontfamily()) for label in figure.axes[0].get_yticklabels()} == {("sans-serif",)}


def test_png_of_a_chart_warns_of_characters_without_a_font(only_bundled, tmp_path):
    chart = charts.lines({CHINESE: ([1, 2], [3, 4])}, "x", "y")
    with pytest.warns(EnvariantWarning, match="no installed font has the characters '年龄'"):
        charts.save(chart, tmp_path / "x.png")
    charts.save(chart, tmp_path / "x.svg")
    assert CHINESE in (tmp_path / "x.svg").read_text(encoding="utf-8")
