"""Pictures of data from Python: sample images, and distributions of columns by environment."""

import numpy as np
import pandas as pd
import pytest
import torch

import envariant
from envariant import Binary, Environment, EnvironmentSet, Regression
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.reporting import samples
from envariant.reporting.picture import Picture


def frame(rows=120):
    rng = np.random.default_rng(0)
    site = np.repeat(["a", "b"], rows // 2)
    age = rng.normal(50, 10, rows) + 20 * (site == "b")
    return pd.DataFrame({
        "age": age, "ward": rng.choice(["<icu>", "er"], rows), "children": rng.integers(0, 4, rows),
        "site": site, "sick": rng.choice(["yes", "no"], rows),
    })  # fmt: skip


def panels(chart):
    """Return the rows of every panel by its title."""
    spec = chart.to_dict(validate=False)
    return {panel["title"]["text"]: panel["data"]["values"] for panel in spec["concat"]}


def test_a_table_is_drawn_as_the_distribution_of_each_column():
    data = frame()
    source = TableSource(tables.read(data, "sick", "site"), "patients")
    drawn = panels(source.plot())
    assert list(drawn) == ["target", "age", "ward", "children"]
    for name in ("target", "ward", "children"):
        column = data["sick" if name == "target" else name].astype(str)
        for row in drawn[name]:
            here = column[data["site"] == row["name"]]
            assert row["share"] == pytest.approx((here == str(row["value"])).mean())
    for site in ("a", "b"):
        shares = {row["value"]: row["share"] for row in drawn["age"] if row["name"] == site}
        center = sum(value * share for value, share in shares.items()) / sum(shares.values())
        assert center == pytest.approx(data.loc[data["site"] == site, "age"].mean(), abs=3)
        assert 0.9 < sum(shares.values()) <= 1


def test_columns_that_are_not_drawn_are_counted():
    inputs = torch.randn(30, 9, generator=torch.Generator().manual_seed(0))
    each = EnvironmentSet("wide", (Environment("a", inputs, torch.rand(30)),), Regression())
    chart = each.plot(most=4)
    assert list(panels(chart)) == ["target", "input 0", "input 1", "input 2", "input 3"]
    assert chart.to_dict(validate=False)["title"]["text"] == "Not drawn: 5 columns."


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (2, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_drawn_as_one_row_per_environment(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, *shape), generator=generator).to(dtype)
    images = images if dtype == torch.uint8 else images / 255
    each = EnvironmentSet.from_arrays(images, ["cat", "dog"] * 10, ["a$", "<b>"] * 10, test=("<b>",))
    picture = each.plot(most=5)
    assert isinstance(picture, Picture)
    assert sum(bool(axes.images) for axes in picture.figure.axes) == 10
    assert {axes.get_title() for axes in picture.figure.axes} == {"", "cat", "dog"}
    html = picture._repr_html_()
    assert html.startswith('<img alt="Images of arrays in &lt;b&gt;, a$, with the target below each."')
    assert repr(picture).startswith("Picture(Images of arrays")


def test_images_have_the_pixels_of_the_data():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    environment = Environment("a", images, torch.tensor([0.0, 1.0]))
    drawn = samples._images(environment, torch.tensor([0, 1]))
    expected = (images / images.max()).permute(0, 2, 3, 1).double().numpy()
    np.testing.assert_allclose(np.stack(drawn), expected, atol=1e-6)


def test_colored_digits_keep_their_colors_and_are_saved(tmp_path):
    picture = envariant.data.colored_digits().plot(most=3)
    picture.save(tmp_path / "digits.png")
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_more_environments_than_fit_are_counted():
    parts = tuple(Environment(f"e{k}", torch.rand(2, 1, 4, 4), torch.tensor([0.0, 1.0])) for k in range(15))
    assert "Not drawn: 3 environments" in EnvironmentSet("many", parts, Binary()).plot(most=2).description


def test_runs_are_drawn_in_one_chart():
    runs = [envariant.train("colored-digits", name, steps=4, model="linear") for name in ("erm", "vrex")]
    rows = runs[0].plot(runs[1]).to_dict(validate=False)["data"]["values"]
    assert {row["name"] for row in rows} == {"erm", "vrex"}
    last = [
        row["score"] for row in rows if row["name"] == "vrex" and row["step"] == 4 and "test" in row["panel"]
    ]
    assert last == pytest.approx([runs[1].final("flip-0.9", "accuracy").mean])
