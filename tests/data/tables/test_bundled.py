import pytest

import envariant
from envariant.core.errors import EnvariantError
from envariant.data.tables import bundled
from envariant.data.tables.table import read


def test_every_bundled_table_can_be_read_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bundled.NAMES == ("heart-disease",)
    table = read("heart-disease", "disease", "hospital")
    assert table.environments == ("Cleveland", "Hungary", "Long Beach", "Switzerland")
    assert len(table) == 920


def test_prevalence_of_the_heart_table_is_as_documented():
    sick = envariant.data.heart_disease().groupby("hospital")["disease"].agg(lambda d: (d == "yes").mean())
    assert sick.round(2).to_dict() == {
        "Cleveland": 0.46,
        "Hungary": 0.36,
        "Long Beach": 0.74,
        "Switzerland": 0.93,
    }


def test_a_file_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heart-disease").write_text("y,site\n1,a\n0,b\n")
    assert bundled.find(tmp_path / "heart-disease") == tmp_path / "heart-disease"
    with pytest.raises(EnvariantError, match="disease"):
        read("heart-disease", "disease", "hospital")
