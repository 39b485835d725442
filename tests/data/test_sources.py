"""Sources by name: a name and its source are one, and what cannot be read is said with the mend."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envariant import data
from envariant.algorithms import RECIPES
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.data import ColoredDigits, ColoredMNIST, source
from envariant.models import model_config
from envariant.training.optimizers import optimizer_config

CHANCES = st.floats(0, 1)
FLIPS = st.lists(CHANCES, min_size=1, max_size=3, unique=True).map(tuple)
SOURCES = st.one_of(
    st.builds(
        ColoredMNIST,
        st.sampled_from(["irm", "domainbed", "thirds"]),
        label_noise=CHANCES,
        train_flips=FLIPS | st.just(()),
        test_flips=FLIPS | st.just(()),
        size=st.sampled_from([None, 28, 14, 7]),
        gray=st.booleans(),
    ),
    st.builds(ColoredDigits, label_noise=CHANCES, train_flips=FLIPS, test_flips=FLIPS, gray=st.booleans()),
)


@given(SOURCES)
def test_text_round_trip_preserves_a_source(x):
    assert source(x.name) == x
    assert source(x.name).name == x.name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colored-mnist", ColoredMNIST()),
        ("colored-mnist:irm", ColoredMNIST("irm")),
        ("colored-mnist:thirds(size=14)", ColoredMNIST("thirds", size=14)),
        ("colored-mnist(test_flips=0.5)", ColoredMNIST(test_flips=(0.5,))),
        ("colored-mnist(test_flips=(0.1, 0.9))", ColoredMNIST(test_flips=(0.1, 0.9))),
        ("colored-mnist-grayscale:domainbed", ColoredMNIST("domainbed", gray=True)),
        ("colored-digits", ColoredDigits()),
        ("colored-digits-grayscale(label_noise=0)", ColoredDigits(label_noise=0, gray=True)),
    ],
)
def test_source_names(text, expected):
    assert source(text) == expected


def test_names_list_only_changed_settings():
    assert ColoredMNIST().name == "colored-mnist:irm"
    assert ColoredMNIST("irm", train_flips=(0.2, 0.1), size=14).name == "colored-mnist:irm"
    named = ColoredMNIST("thirds", label_noise=0.1, size=14, gray=True).name
    assert named == "colored-mnist-grayscale:thirds(label_noise=0.1, size=14)"
    assert ColoredDigits(test_flips=(0.5,)).name == "colored-digits(test_flips=(0.5,))"


def test_the_folder_is_not_part_of_the_name(tmp_path):
    there = source("colored-mnist", folder=tmp_path)
    assert there == ColoredMNIST(folder=tmp_path) == ColoredMNIST()
    assert there.folder == tmp_path
    assert there.name == "colored-mnist:irm"


def test_every_registered_source_has_a_summary_and_its_name():
    for name, (_, summary) in data.SOURCES.items():
        assert summary.endswith(".")
        if name.startswith("colored-"):
            built = source(name)
            assert isinstance(built, EnvironmentSource)
            assert built.name.startswith(name)
    assert source("colored-digits").sample(0).name == "colored-digits"


@pytest.mark.parametrize("protocol", ["irm", "domainbed", "thirds"])
@pytest.mark.parametrize("algorithm", RECIPES)
@pytest.mark.parametrize("gray", [False, True])
def test_default_settings_are_valid(protocol, algorithm, gray):
    for x in (ColoredMNIST(protocol, gray=gray), ColoredDigits(gray=gray)):
        found = x.default_settings(algorithm)
        algorithm_built = RECIPES[algorithm].build(found.hyperparameters)
        for key, value in found.hyperparameters.items():
            if key == "l2":
                assert algorithm_built.l2 == value
        assert model_config(found.model)
        assert optimizer_config(found.optimizer)
        assert found.source


KNOWN = (
    "known: by-group, colored-digits, colored-digits-grayscale, colored-mnist, colored-mnist-channels, "
    "colored-mnist-covariate-shift, colored-mnist-grayscale, colored-mnist-hetero, domainbed, domainbed-split, features, "
    "image-folders, linear-sem, linear-unit-tests, metadata-images, rotated-mnist, spawrious, spirals, table, wilds"
)
SETTINGS = (
    "known: gray_test, label_noise, logged_tests, size, strided_tests, test_flips, train_flips, two_logits"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colored-mnst", f"unknown data set 'colored-mnst'; did you mean 'colored-mnist'? {KNOWN}"),
        ("colored-mnist:irn", "colored-mnist: unknown protocol 'irn'; did you mean 'irm'? "
         "known: domainbed, eqrm, irm, thirds"),
        ("colored-mnist(lable_noise=0.1)", "colored-mnist: unknown setting 'lable_noise'; "
         f"did you mean 'label_noise'? {SETTINGS}"),
        ("colored-mnist(gray=true)", f"colored-mnist: unknown setting 'gray'; did you mean 'gray_test'? {SETTINGS}"),
        ("colored-mnist(folder=here)", f"colored-mnist: unknown setting 'folder'; {SETTINGS}"),
        ("colored-mnist(protocol=irm)", f"colored-mnist: unknown setting 'protocol'; {SETTINGS}"),
        ("colored-mnist(0.1)", "colored-mnist: settings must be named, as in colored-mnist(label_noise=…)"),
        ("colored-mnist-channels:irm", "colored-mnist-channels: has no protocols; got ':irm'"),
        ("colored-mnist-channels(size=9)", "colored-mnist-channels: size must be 28, 14 or 7; got 9"),
        ("colored-digits:irm", "colored-digits: has no protocols; got ':irm'"),
        ("colored-digits(size=7)", "colored-digits: unknown setting 'size'; "
         "known: label_noise, test_flips, train_flips"),
        ("colored-digits(label_noise=2)", "colored-digits: label_noise must lie in [0, 1]; got 2"),
    ],
)  # fmt: skip
def test_an_invalid_source_is_rejected(text, message):
    with pytest.raises(EnvariantError) as refusal:
        source(text)
    assert str(refusal.value) == message


@pytest.mark.parametrize("name", ["colored-mnist", "colored-digits"])
@pytest.mark.parametrize(
    "setting", ["label_noise=lots", "label_noise=none", "train_flips=few", "test_flips=(0.9, all)"]
)
def test_an_invalid_probability_is_rejected(name, setting):
    with pytest.raises(EnvariantError, match=rf"^{name}: {setting.split('=')[0]} must"):
        source(f"{name}({setting})")
