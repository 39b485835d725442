"""Colored MNIST on the real digits: the counts that each program's own order of random numbers gives."""

import hashlib
import math
import re

import numpy as np
import pytest
import torch

from envariant import published
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Step
from envariant.core.tasks import Binary
from envariant.data import ColoredMNIST, colored_mnist
from envariant.data.colored import mnist
from envariant.models import model_config

PROTOCOLS = ("irm", "domainbed", "thirds")


@pytest.fixture(scope="module")
def digits():
    return mnist.load()


@pytest.fixture(scope="module")
def irm():
    return ColoredMNIST("irm").sample(0)


@pytest.fixture(scope="module")
def domainbed():
    return ColoredMNIST("domainbed").sample(0)


@pytest.fixture(scope="module")
def thirds():
    return ColoredMNIST("thirds").sample(0)


@pytest.fixture(params=PROTOCOLS)
def drawn(request):
    return request.getfixturevalue(request.param)


def counts(environment):
    """Rows with label 1, with color 1, whose color is the label, whose label is the shape."""
    label, color = environment.targets.long(), environment.attributes["color"]
    agree = [label == 1, color == 1, color == label, label == environment.attributes["shape"]]
    return [int(rows.sum()) for rows in agree]


def first_digits(environment, rows):
    return environment.attributes["digit"][:rows].tolist()


def test_irm_counts_are_those_of_the_fixture(irm):
    assert irm.names == ("flip-0.2", "flip-0.1", "flip-0.9")
    assert list(map(counts, irm.environments)) == [
        [12_786, 12_720, 19_974, 18_824],
        [12_670, 12_737, 22_441, 18_830],
        [5_014, 5_011, 987, 7_544],
    ]


def test_irm_rows_are_those_of_the_fixture(irm, digits):
    first, second, test = irm.environments
    assert [len(e) for e in irm.environments] == [25_000, 25_000, 10_000]
    # The shuffled digits start 2 2 5 5 9 7 2 7 3 4, the permutation 11841 19602 45519 25747 42642.
    assert first_digits(first, 5) == [2, 5, 9, 2, 3]
    assert first_digits(second, 5) == [2, 5, 7, 7, 4]
    for environment, rows in ((first, [11841, 45519, 42642]), (second, [19602, 25747])):
        ink = torch.from_numpy(digits.train_images[rows][:, ::2, ::2].astype(np.float32) / np.float32(255))
        assert torch.equal(environment.inputs[: len(rows)].sum(dim=1), ink)
    assert torch.equal(test.attributes["digit"], torch.tensor(digits.train_labels[50_000:].tolist()))
    ink = torch.from_numpy(digits.train_images[50_000:, ::2, ::2].astype(np.float32) / np.float32(255))
    assert torch.equal(test.inputs.sum(dim=1), ink)


def test_domainbed_counts_are_those_of_the_fixture(domainbed):
    assert domainbed.names == ("+90%", "+80%", "-90%")
    assert [len(e) for e in domainbed.environments] == [23_334, 23_333, 23_333]
    assert list(map(counts, domainbed.environments)) == [
        [11_729, 11_664, 20_949, 17_565],
        [11_695, 11_546, 18_636, 17_548],
        [11_762, 11_609, 2_278, 17_568],
    ]


def test_domainbed_rows_are_those_of_the_fixture(domainbed, digits):
    # The permuted digits start 0 9 2 9 9 0 1 2 5 1, the permutation 26044 34615 62699 39172 46907.
    found = [first_digits(e, 4) for e in domainbed.environments]
    assert [found[0], found[1][:3], found[2][:3]] == [[0, 9, 1, 1], [9, 9, 2], [2, 0, 5]]
    images = np.concatenate([digits.train_images, digits.test_images])
    for environment, row in zip(domainbed.environments, (26044, 34615, 62699), strict=True):
        ink = torch.from_numpy(images[row].astype(np.float32) / np.float32(255))
        assert torch.equal(environment.inputs[0].sum(dim=0), ink)


def test_thirds_counts_are_those_of_the_fixture(thirds):
    assert thirds.names == ("train1", "train2", "test")
    # The fixture counts red, which is color 0.
    found = [(y, 20_000 - c, agree, shape) for y, c, agree, shape in map(counts, thirds.environments)]
    assert found == [
        (9_859, 10_199, 15_978, 14_868),
        (9_957, 10_083, 18_006, 14_974),
        (9_966, 10_021, 2_081, 15_154),
    ]


def test_thirds_are_blocks_in_file_order_with_digits_from_five_on_called_one(thirds, digits):
    whole = torch.cat([e.attributes["digit"] for e in thirds.environments])
    assert torch.equal(whole, torch.tensor(digits.train_labels.tolist()))
    shape = torch.cat([e.attributes["shape"] for e in thirds.environments])
    assert torch.equal(shape, (whole >= 5).long())
    low = [int((e.attributes["digit"] < 5).sum()) for e in thirds.environments]
    assert low == [10_225, 10_195, 10_176]


def test_thirds_are_standardized_and_their_blue_channel_is_zero(thirds, digits):
    environment = thirds["train1"]
    assert environment.inputs.shape == (20_000, 3, 28, 28)
    assert not environment.inputs[:, 2].any()
    # A corner is background in red and green.
    torch.testing.assert_close(
        environment.inputs[:, :2, 0, 0], torch.full((20_000, 2), -0.4242), atol=5e-5, rtol=0
    )
    color = environment.attributes["color"]
    held = environment.inputs[torch.arange(20_000), color]
    empty = environment.inputs[torch.arange(20_000), 1 - color]
    expected = (torch.from_numpy(digits.train_images[:20_000] / np.float32(255)) - 0.1307) / 0.3081
    torch.testing.assert_close(held, expected, atol=1e-6, rtol=0)
    assert empty.unique().numel() == 1


@pytest.mark.parametrize("protocol", ["irm", "domainbed"])
def test_exactly_one_channel_of_every_image_holds_ink_and_it_is_the_colors(protocol, request):
    for environment in request.getfixturevalue(protocol).environments:
        held = environment.inputs.flatten(2).any(dim=2)
        assert bool((held.sum(dim=1) == 1).all())
        assert torch.equal(held.long().argmax(dim=1), environment.attributes["color"])
        assert float(environment.inputs.min()) == 0
        assert float(environment.inputs.max()) <= 1


def test_the_last_environment_is_held_out_and_theory_is_known(drawn):
    assert list(drawn.roles().values()) == ["train", "train", "test"]
    assert (drawn.known.chance, drawn.known.optimum) == (0.5, 0.75)
    assert drawn.task == Binary()
    assert all(e.inputs.dtype == e.targets.dtype == torch.float32 for e in drawn.environments)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_agreements_of_another_seed_are_within_four_standard_errors(protocol):
    source = ColoredMNIST(protocol, size=7)
    facts = source.facts(source.sample(5))
    assert [f.theory.color_only for f in facts] == [1 - flip for flip in source.flips]
    for fact in facts:
        assert fact.theory.shape_only == 0.75
        for share, expected in (
            (fact.color_agreement, fact.theory.color_only),
            (fact.shape_agreement, fact.theory.shape_only),
        ):
            assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / fact.rows)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_facts_are_direct_counts(protocol, request):
    drawn = request.getfixturevalue(protocol)
    facts = ColoredMNIST(protocol).facts(drawn)
    for fact, environment in zip(facts, drawn.environments, strict=True):
        rows = len(environment)
        ones, _, color, shape = counts(environment)
        assert (fact.environment, fact.rows) == (environment.name, rows)
        assert fact.role == drawn.roles()[environment.name]
        found = (fact.label_one, fact.color_agreement, fact.shape_agreement)
        assert found == pytest.approx((ones / rows, color / rows, shape / rows), rel=1e-12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_samples_depend_on_the_seed_only(protocol):
    source = ColoredMNIST(protocol, size=7)
    first, again, other = (source.sample(seed) for seed in (3, 3, 4))
    for a, b, c in zip(first.environments, again.environments, other.environments, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert not torch.equal(a.targets, c.targets)


def test_sampling_leaves_global_generators_unchanged():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for protocol in PROTOCOLS:
        ColoredMNIST(protocol, size=7).sample(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_grayscale_data_do_not_depend_on_the_color_flips(protocol):
    flips = {"train_flips": (0.0, 1.0), "test_flips": (0.5,)}
    usual = ColoredMNIST(protocol, size=7, gray=True).sample(0)
    other = ColoredMNIST(protocol, size=7, gray=True, **flips).sample(0)
    for a, b in zip(usual.environments, other.environments, strict=True):
        assert not torch.equal(a.attributes["color"], b.attributes["color"])
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert a.inputs.shape[1] == 1


def test_grayscale_thirds_are_plain_digits(irm):
    gray = ColoredMNIST("irm", gray=True).sample(0)
    for g, c in zip(gray.environments, irm.environments, strict=True):
        assert torch.equal(g.inputs, c.inputs.sum(dim=1, keepdim=True))
        assert torch.equal(g.targets, c.targets)


def test_without_noise_the_label_is_the_shape_and_certain_flips_fix_the_color():
    drawn = colored_mnist(label_noise=0.0, train_flips=(0.0, 1.0), test_flips=(0.5,), size=7).sample(0)
    never, always, _ = drawn.environments
    for environment in drawn.environments:
        assert torch.equal(environment.targets.long(), environment.attributes["shape"])
    assert torch.equal(never.attributes["color"], never.targets.long())
    assert torch.equal(always.attributes["color"], 1 - always.targets.long())
    assert drawn.known.optimum == 1.0
    assert drawn.names == ("flip-0", "flip-1", "flip-0.5")


def test_size_keeps_every_kth_pixel_and_the_same_rows(irm):
    large, small = (ColoredMNIST("irm", size=size).sample(0) for size in (28, 7))
    for a, b, c in zip(large.environments, irm.environments, small.environments, strict=True):
        assert torch.equal(a.inputs[:, :, ::2, ::2], b.inputs)
        assert torch.equal(b.inputs[:, :, ::2, ::2], c.inputs)
        assert torch.equal(a.targets, c.targets)


def test_several_test_flips_color_the_same_ten_thousand_digits():
    drawn = colored_mnist(test_flips=(0.1, 0.5, 0.9), size=7).sample(0)
    assert drawn.names == ("flip-0.2", "flip-0.1", "test-flip-0.1", "flip-0.5", "flip-0.9")
    assert list(drawn.roles().values()) == ["train"] * 2 + ["test"] * 3
    first, *others = drawn.environments[2:]
    assert len(first) == 10_000
    for other in others:
        assert torch.equal(other.inputs.sum(dim=1), first.inputs.sum(dim=1))
        assert torch.equal(other.attributes["digit"], first.attributes["digit"])
        assert not torch.equal(other.attributes["color"], first.attributes["color"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_test_flip_may_equal_a_training_flip(protocol):
    drawn = ColoredMNIST(protocol, test_flips=(0.1,), size=7).sample(0)
    assert list(drawn.roles().values()) == ["train", "train", "test"]
    assert len(set(drawn.names)) == 3


@pytest.mark.parametrize(
    ("protocol", "sizes"),
    [
        ("irm", [12_500] * 4 + [10_000]),
        ("domainbed", [14_000] * 5),
        ("thirds", [12_000] * 5),
    ],
)
def test_more_training_flips_share_the_digits(protocol, sizes):
    drawn = ColoredMNIST(protocol, train_flips=(0.1, 0.2, 0.3, 0.4), size=7).sample(0)
    assert [len(e) for e in drawn.environments] == sizes


PAPER, REX = published.protocol("colored_mnist_irm"), published.protocol("colored_mnist_rex")


@pytest.mark.parametrize(("algorithm", "paper"), [("irm", PAPER), ("vrex", REX), ("mm-rex", REX)])
def test_penalty_methods_start_from_the_settings_of_their_code(algorithm, paper):
    found = ColoredMNIST("irm").default_settings(algorithm)
    anneal = Step(1.0, paper["penalty_weight"], at=paper["anneal_steps"])
    # The mm-rex objective is half of the code's sum of two risks, and so is the term beside it.
    l2 = paper["l2"] / (2 if algorithm == "mm-rex" else 1)
    assert found.hyperparameters["coefficient"] == anneal
    assert found.hyperparameters["l2"] == l2
    assert model_config(found.model) == model_config(f"mlp(hidden={paper['hidden']})")
    assert (found.steps, found.learning_rate) == (paper["steps"], paper["lr"])
    assert (found.batch_size, found.optimizer) == (None, "adam")


@pytest.mark.parametrize(
    ("gray", "sentence"),
    [
        (False, "hidden {hidden}, l2 {l2}, lr {lr}, penalty weight 0, {steps} steps"),
        (True, "hidden {hidden}, l2 {l2}, lr {lr}, {steps} steps"),
    ],
)
def test_erm_and_oracle_default_settings_match_the_protocol(gray, sentence):
    found = ColoredMNIST("irm", gray=gray).default_settings("erm")
    stated = sentence.format(
        hidden=model_config(found.model).hidden,
        l2=found.hyperparameters["l2"],
        lr=found.learning_rate,
        steps=found.steps,
    )
    assert stated in PAPER["grayscale_oracle" if gray else "erm"]


def test_gray_environment_is_that_of_the_rex_code(irm):
    """Compare with counts and a digest of the released program (NumPy and torch seed 0)."""
    drawn = colored_mnist(gray_test=True).sample(0)
    assert drawn.names == ("flip-0.2", "flip-0.1", "flip-0.9", "gray")
    assert drawn.test == ("flip-0.9", "gray")
    for ours, plain in zip(drawn.environments, irm.environments, strict=False):
        assert torch.equal(ours.inputs, plain.inputs)
    gray = drawn.environments[-1]
    assert hashlib.sha256(gray.inputs.numpy().tobytes()).hexdigest()[:16] == "ec3e9db63d87b208"
    assert gray.targets[:8].tolist() == [1, 1, 1, 0, 0, 0, 0, 1]
    assert int(gray.targets.sum()) == 5183
    assert int((gray.targets == gray.attributes["shape"]).sum()) == 7517
    facts = colored_mnist(gray_test=True).facts(drawn)[-1]
    assert math.isnan(facts.color_agreement)
    assert (facts.theory.color_only, facts.theory.bayes) == (0.5, 0.75)


def test_strided_test_environments_are_those_of_the_rex_code():
    flips = tuple(k / 10 for k in range(11))
    drawn = colored_mnist(test_flips=flips, strided_tests=True).sample(0)
    tests = drawn.environments[2:]
    assert [len(each) for each in tests] == [1000] * 10 + [999]
    counts = {
        "y": [487, 507, 480, 527, 512, 500, 464, 518, 501, 530, 485],
        "color": [1000, 905, 790, 693, 629, 487, 416, 296, 222, 105, 0],
        "shape": [761, 732, 753, 737, 790, 730, 763, 767, 740, 767, 735],
    }
    assert [int(each.targets.sum()) for each in tests] == counts["y"]
    for name in ("color", "shape"):
        assert [int((each.targets == each.attributes[name]).sum()) for each in tests] == counts[name]


def test_environments_of_the_rfc_code_are_those_of_the_fixture():
    """Compare with digests of a second implementation (restart 1: NumPy and torch seed 1)."""
    drawn = colored_mnist(train_flips=(0.1, 0.2), test_flips=(0.9, 0.1, 0.5)).sample(1)
    digests = [hashlib.sha256(each.inputs.numpy().tobytes()).hexdigest()[:16] for each in drawn.environments]
    assert digests == [
        "d3404c827289df1b", "8dcd2ee051dc3930", "e8304cc1455c8415", "acee7d1913d47895", "8b3cdaeba7fa34a8"
    ]  # fmt: skip


def test_eqrm_environments_are_those_of_the_fixture(digits):
    """Compare with counts and digests of a second implementation (torch seed 0)."""
    flips = tuple(k / 10 for k in range(11))
    source = colored_mnist("eqrm", test_flips=flips, logged_tests=True)
    drawn = source.sample(0)
    training, tests, logged = drawn.environments[:2], drawn.environments[2:13], drawn.environments[13:]
    assert list(map(counts, training)) == [
        [12_567, 12_601, 22_472, 18_730],
        [12_675, 12_497, 19_946, 18_808],
    ]
    digests = [hashlib.sha256(each.inputs.numpy().tobytes()).hexdigest()[:16] for each in training]
    assert digests == ["20556e9a2135522e", "eef32d66069a89b3"]
    # The shuffled digits start 9 3 5 4 7 4 9 6 8 8.
    assert [first_digits(each, 5) for each in training] == [[9, 5, 7, 9, 8], [3, 4, 4, 6, 8]]
    assert [each.name for each in logged] == [f"logged-flip-{flip}" for flip in (0.1, 0.2, 0.5, 0.9)]
    assert counts(logged[-1])[::2] + counts(logged[-1])[3:] == [4_953, 1_017, 7_467]
    assert [counts(each)[2] for each in tests] == [
        10_000, 9_019, 8_046, 6_954, 6_072, 4_974, 4_025, 3_040, 1_921, 996, 0
    ]  # fmt: skip
    assert [counts(each)[3] for each in tests] == [
        7_502, 7_479, 7_517, 7_504, 7_542, 7_517, 7_467, 7_442, 7_458, 7_474, 7_481
    ]  # fmt: skip
    assert first_digits(tests[0], 5) == digits.test_labels[[7953, 9495, 6723, 5291, 1125]].tolist()
    facts = source.facts(drawn)
    assert [1 - fact.theory.color_only for fact in facts] == pytest.approx(
        [0.1, 0.2, *flips, 0.1, 0.2, 0.5, 0.9]
    )


def test_training_environments_may_have_equal_flips():
    drawn = colored_mnist(train_flips=(0.5, 0.5)).sample(0)
    assert drawn.names == ("flip-0.5", "flip-0.5-2", "flip-0.9")


def test_domainbed_has_its_own_defaults():
    training = published.protocol("domainbed")["training"]
    found = ColoredMNIST("domainbed").default_settings("erm")
    assert found.model == "mnist-cnn"
    assert found.steps == int(re.match(r"([\d,]+) steps", training)[1].replace(",", ""))
    rate, batch = re.search(r"defaults: lr (\S+), batch (\d+) per environment", training).groups()
    assert (found.learning_rate, found.batch_size) == (float(rate), int(batch))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("irn",), {}, "unknown protocol 'irn'; did you mean 'irm'? known: domainbed, eqrm, irm, thirds"),
        ((), {"label_noise": 1.2}, "label_noise must lie in [0, 1]; got 1.2"),
        ((), {"train_flips": (0.1, -0.2)}, "train_flips must lie in [0, 1]; got -0.2"),
        ((), {"test_flips": (0.9, 0.9)}, "test_flips must differ from one another; got (0.9, 0.9)"),
        (("thirds",), {"gray_test": True}, "the option gray_test is available only in protocol 'irm'"),
        (("irm",), {"logged_tests": True}, "the option logged_tests is available only in protocol 'eqrm'"),
        (
            (),
            {"gray": True, "gray_test": True},
            "gray_test needs color; all images of colored-mnist-grayscale:irm(gray_test=true) are gray",
        ),
        ((), {"size": 13}, "size must be 28, 14 or 7; got 13"),
        ((), {"size": 0}, "size must be 28, 14 or 7; got 0"),
    ],
)
def test_invalid_settings_are_rejected(arguments, settings, message):
    with pytest.raises(EnvariantError) as refusal:
        colored_mnist(*arguments, **settings)
    assert str(refusal.value) == f"colored-mnist: {message}"
