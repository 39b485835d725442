"""Model cards and repositories of the Hugging Face Hub, without a network."""

import json
import re

import pandas as pd
import pytest
import torch
from safetensors import safe_open

import envariant
from envariant import EnvariantError
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.integrations import hub
from envariant.predictors import MajorityClass
from envariant.saved_model import SavedModel


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("huggingface_hub", reason="the extra `huggingface` is not installed")


@pytest.fixture(scope="module")
def model():
    table = envariant.data.heart_disease()[["age", "sex", "chol", "hospital", "disease"]]
    source = TableSource(tables.read(table, "disease", "hospital"), "patients")
    return SavedModel.of_predictor(source, MajorityClass(), about={"selection": "training-domain validation"})


def sections(card):
    return dict(re.findall(r"^## (.+)\n\n((?:.+\n|\n(?!##))+)", card, re.MULTILINE))


def test_the_card_states_the_facts_of_the_record(library, model):
    card = hub.write_card(
        model, drops={"cleveland": 0.125, "switzerland": -0.02}, metric="accuracy", license_id="mit",
        intended_use="Research on heart disease.",
    )  # fmt: skip
    read = library.ModelCard(card)
    assert read.data.to_dict() == {
        "library_name": "envariant", "license": "mit", "pipeline_tag": "tabular-classification",
        "tags": ["envariant", "out-of-distribution", "tabular-classification"],
    }  # fmt: skip
    parts = sections(read.content)
    environments = "".join(f"- {name}\n" for name in model.environments)
    assert parts["Training environments"].strip() == environments.strip()
    assert "| cleveland | +0.125 |\n| switzerland | -0.020 |" in parts["Drop per environment"]
    assert parts["Model selection"].strip() == "training-domain validation"
    assert parts["Intended use"].strip() == "Research on heart disease."
    assert all(f"- {name}" in parts["Columns"] for name in ("age", "sex", "chol"))
    for key in ("method", "seed", "date", "versions"):
        assert f"- {key}: " in parts["Record"]


def test_an_environment_without_a_measured_drop_is_named(model):
    parts = sections(hub.write_card(model, drops={"a": 0.125, "b": float("nan")}))
    assert "| a | +0.125 |\n| b | not measured |" in parts["Drop per environment"]


def test_a_card_without_measurements_claims_none(library, model):
    parts = sections(hub.write_card(model))
    assert parts["Drop per environment"].startswith("No drop was measured.")
    assert "`model.resembles(table)`" in parts["Intended use"]
    assert library.ModelCard(hub.write_card(model)).data.license is None
    with pytest.raises(EnvariantError, match=r"^write_card: the drop of 'a' must be a number; got 'large'$"):
        hub.write_card(model, drops={"a": "large"})


def test_texts_from_data_cannot_change_the_card(library):
    """Names of columns and environments come from files of strangers."""
    evil = "a\n---\nlicense: evil\n---\n<script>alert(1)</script> | # x"
    table = pd.DataFrame(
        {"x": [*range(10)] * 12, evil: [*range(10)] * 12, "y": [0, 1] * 60, "place": [evil] * 60 + ["b"] * 60}
    )
    source = TableSource(tables.read(table, "y", "place"), "patients")
    card = hub.write_card(SavedModel.of_predictor(source, MajorityClass()), name=evil)
    assert "<script>" not in re.sub(r"\\<", "", card)
    assert card.count("\n---\n") == 1
    assert library.ModelCard(card).data.license is None
    assert sum(line.startswith("# ") for line in card.splitlines()) == 1


def test_a_repository_contains_a_card_and_a_model_without_pickled_objects(library, model, tmp_path):
    folder = hub.prepare_folder(model, tmp_path / "repository")
    assert {path.name for path in folder.iterdir()} == {"README.md", "model.json", "model.safetensors"}
    assert library.ModelCard.load(folder / "README.md").data.library_name == "envariant"
    json.loads((folder / "model.json").read_text(encoding="utf-8"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert all(isinstance(file.get_tensor(name), torch.Tensor) for name in file.keys())  # noqa: SIM118
    rows = envariant.data.heart_disease().head(5)
    pd.testing.assert_frame_equal(envariant.load_model(folder).predict(rows), model.predict(rows))


def test_push_and_load_use_the_api_of_the_library(library, model, tmp_path, monkeypatch):
    """The Hub is a folder here; names and arguments are checked against the real signatures."""
    from inspect import signature

    stored = tmp_path / "hub"
    create, upload = (signature(getattr(library.HfApi, name)) for name in ("create_repo", "upload_folder"))
    download = signature(library.snapshot_download)

    def created(self, *arguments, **options):
        create.bind(self, *arguments, **options)
        assert options["private"]

    def uploaded(self, *arguments, **options):
        upload.bind(self, *arguments, **options)
        hub.prepare_folder(envariant.load_model(options["folder_path"]), stored)
        return "commit"

    def downloaded(*arguments, **options):
        download.bind(*arguments, **options)
        # Files of other types, which could be pickled, are not requested.
        assert options["allow_patterns"] == ["model.safetensors", "model.json"]
        return str(stored)

    monkeypatch.setattr(library.HfApi, "create_repo", created)
    monkeypatch.setattr(library.HfApi, "upload_folder", uploaded)
    monkeypatch.setattr(library, "snapshot_download", downloaded)
    assert hub.push_model(model, "user/heart") == "commit"
    rows = envariant.data.heart_disease().head(5)
    loaded = hub.load_from_hub("user/heart", revision="main")
    pd.testing.assert_frame_equal(loaded.predict(rows), model.predict(rows))


def test_wrong_names_are_rejected_in_one_line(library, model, tmp_path):
    # Both names are rejected before any request.
    with pytest.raises(EnvariantError, match=r"^a/b/c: cannot be downloaded \(Repo id must be"):
        hub.load_from_hub("a/b/c")
    with pytest.raises(EnvariantError, match=r"^a/b/c: cannot be uploaded \(Repo id must be"):
        hub.push_model(model, "a/b/c")
    with pytest.raises(EnvariantError, match=r"^user/absent: cannot be downloaded \("):
        hub.load_from_hub("user/absent", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(EnvariantError, match=r"^repository must be a name such as 'user/model'; got 3$"):
        hub.load_from_hub(3)
