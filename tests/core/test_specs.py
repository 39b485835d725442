"""The little language: what is written is what is read, and nothing is ever evaluated."""

from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveFloat

from envariant.core.errors import EnvariantError, closest_name, unknown_name
from envariant.core.specs import Percent, Spec, describe, fill, format_value, parse, parse_value, validate

# Words that Python or the language itself reads as something else are no words here.
WORDS = st.from_regex(r"[a-z]{1,3}[0-9_][a-z0-9_]{0,4}", fullmatch=True)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_+:-]{0,8}", fullmatch=True)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
    | st.builds(Percent, st.integers(0, 100) | st.floats(0, 100))
)


def calls(values):
    """Calls with at least one argument: a bare name among values is a word."""
    made = st.builds(
        Spec,
        WORDS,
        st.lists(values, max_size=3).map(tuple),
        st.dictionaries(WORDS, values, max_size=3),
    )
    return made.filter(lambda spec: spec.positional or spec.keywords)


VALUES = st.recursive(ATOMS, lambda v: st.lists(v, max_size=3).map(tuple) | calls(v), max_leaves=8)


@given(NAMES, st.lists(VALUES, max_size=3), st.dictionaries(WORDS, VALUES, max_size=3))
def test_text_round_trip_preserves_a_spec(name, positional, keywords):
    spec = Spec(name, tuple(positional), keywords)
    assert parse(str(spec)) == spec


@given(VALUES)
def test_text_round_trip_preserves_the_type_of_a_value(value):
    read = parse_value(format_value(value))
    assert read == value
    if not isinstance(value, float):  # 10000.0 is written 10000.
        assert type(read) is type(value)


@pytest.mark.parametrize(
    "value",
    [float("inf"), -float("inf"), "two words", "true", "1", "mm-rex", ("and-mask", 2)],
)
def test_text_round_trip_preserves_unusual_values(value):
    read = parse_value(format_value(value))
    assert read == value
    assert type(read) is type(value)


@given(st.text())
def test_text_round_trip_preserves_any_string(text):
    assert parse_value(format_value(text)) == text


@pytest.mark.parametrize(
    "path",
    [r"D:\new\trials", r"D:\birds\table", r"\\server\share\x", r"C:\Users\N", r"D:\data\x64", r"D:\u1\n"],
)
def test_backslashes_of_windows_paths_are_kept(path):
    assert parse(f"f('{path}', 40%)") == parse(f'f("{path}", 40%)') == Spec("f", (path, Percent(40)))
    assert parse(f"f(r'{path}')") == parse(str(Spec("f", (path,)))) == Spec("f", (path,))
    with pytest.raises(EnvariantError, match="without a backslash at its end"):
        parse(f"f('{path}\\')")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("irm", Spec("irm")),
        ("irm()", Spec("irm")),
        (" irm ( 1 , b = 2 ) ", Spec("irm", (1,), {"b": 2})),
        ("and-mask(threshold=0.5)", Spec("and-mask", (), {"threshold": 0.5})),
        ("erm++", Spec("erm++")),
        ("colored-mnist:irm(label_noise=1e-1)", Spec("colored-mnist:irm", (), {"label_noise": 0.1})),
        ("a(b(1, c=d(-2)))", Spec("a", (Spec("b", (1,), {"c": Spec("d", (-2,))}),))),
        ("a((1, 2), [3], ())", Spec("a", ((1, 2), (3,), ()))),
        ("a(true, false, none, mean)", Spec("a", (True, False, None, "mean"))),
        ("a('two words')", Spec("a", ("two words",))),
    ],
)
def test_parse_examples(text, spec):
    assert parse(text) == spec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e4", 1e4),
        (" -3 ", -3),
        ("true", True),
        ("None", None),
        ("40%", Percent(40)),
        (" 2.5% ", Percent(2.5)),
        ("step(1, 1e4, at=40%)", Spec("step", (1, 1e4), {"at": Percent(40)})),
        ("stages(1, 2, 3, at=(10%, 20% ))", Spec("stages", (1, 2, 3), {"at": (Percent(10), Percent(20))})),
        ("f('5%, 6%', \"7%)\")", Spec("f", ("5%, 6%", "7%)"))),
        ("mean", "mean"),
        ("(1, 2)", (1, 2)),
        ("step(1, 1e4, at=190)", Spec("step", (1, 1e4), {"at": 190})),
        ("and-mask", "and-mask"),
        ("mm-rex", "mm-rex"),
        ("mnist-cnn", "mnist-cnn"),
        ("erm++", "erm++"),
        ("mm-rex(coefficient=1)", Spec("mm-rex", (), {"coefficient": 1})),
        ("colored-mnist:irm(label_noise=0.1)", Spec("colored-mnist:irm", (), {"label_noise": 0.1})),
    ],
)
def test_a_value_may_be_a_number_a_word_or_a_call_whose_name_has_hyphens(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("read", [parse, parse_value])
@pytest.mark.parametrize(
    "attack",
    [
        "f(__import__('os').system('touch {}'))",
        "f(a=__import__('os').system('touch {}'))",
        "f(open('{}', 'w'))(1)",
        "f(*open('{}', 'w'))",
        "f(**open('{}', 'w'))",
        "f((lambda: open('{}', 'w'))())",
        "f([open('{}', 'w') for _ in (1,)])",
        "f(open('{}', 'w') or 1)",
        "f(1), open('{}', 'w').write(1)",
        'f(f\'{{open("{}", "w")}}\')',
    ],
)
def test_code_is_never_evaluated(read, attack, tmp_path):
    with pytest.raises(EnvariantError, match=r"^cannot read "):
        read(attack.format(tmp_path / "touched"))
    assert not (tmp_path / "touched").exists()


def test_a_call_is_parsed_and_not_executed(tmp_path):
    path = str(tmp_path / "touched")
    assert parse(f"f(open('{path}', 'w'))") == Spec("f", (Spec("open", (path, "w")),))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1x",
        "f(",
        "f)",
        "f(1",
        "f(1)(2)",
        "f(1) g",
        "f(a=1, a=2)",
        "f(a=1, 2)",
        "f.x",
        "f(x.y)",
        "f(1+1)",
        "f(5%%)",
        "f(x%)",
        "f(7 % 3)",
        "f(%)",
    ],
)
def test_invalid_text_is_rejected(text):
    with pytest.raises(EnvariantError) as refusal:
        parse(text)
    assert str(refusal.value).startswith(f"cannot read '{text}': expected ")


@dataclass(frozen=True)
class Recipe:
    flour: int
    water: int = 2
    salt: float = 0.1


def test_arguments_are_matched_with_fields():
    assert fill(Recipe, parse("recipe(3, salt=1)")) == {"flour": 3, "salt": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r(1, wter=3)", "r: unknown setting 'wter'; did you mean 'water'? known: flour, salt, water"),
        ("r(1, 2, 3, 4)", "r: takes at most 3 unnamed values; got 4"),
        ("r(1, flour=2)", "r: 'flour' is given twice"),
        ("r(water=2)", "r: needs flour, as in r(flour=…)"),
    ],
)
def test_invalid_arguments_are_rejected(text, message):
    with pytest.raises(EnvariantError) as refusal:
        fill(Recipe, parse(text))
    assert str(refusal.value) == message


def test_fields_can_be_keyword_only():
    with pytest.raises(EnvariantError, match=r"^r: takes at most 1 unnamed values; got 2$"):
        fill(Recipe, parse("r(1, 2)"), positional=("flour",))
    with pytest.raises(EnvariantError, match=r"^r: settings must be named, as in r\(flour=…\)$"):
        fill(Recipe, parse("r(1)"), positional=())


def test_hidden_fields_cannot_be_set():
    with pytest.raises(EnvariantError) as refusal:
        fill(Recipe, parse("r(1, salt=3)"), hidden=("salt",))
    assert str(refusal.value) == "r: unknown setting 'salt'; known: flour, water"


def test_a_description_lists_only_changed_settings():
    assert describe("r", Recipe(1), Recipe(1)) == "r"
    assert describe("r", Recipe(1, salt=0.5), Recipe(1)) == "r(salt=0.5)"


def test_an_unknown_name_lists_a_suggestion_and_all_known_names():
    assert str(unknown_name("fruit", "aple", ["pear", "apple"])) == (
        "unknown fruit 'aple'; did you mean 'apple'? known: apple, pear"
    )
    assert str(unknown_name("fruit", "xyz", [], where="basket")) == (
        "basket: unknown fruit 'xyz'; known: none"
    )


@pytest.mark.parametrize("written", ["IRM", "Irm", "IRMM", "i r m", "ir_m", "irn"])
def test_case_blanks_and_hyphens_do_not_hide_a_suggestion(written):
    assert closest_name(written, ["erm", "vrex", "and-mask", "irm", "groupdro"]) == "irm"


@pytest.mark.parametrize("written", ["AND_MASK", "andmask", "and mask", "And-Mask"])
def test_a_name_that_differs_in_separators_is_suggested(written):
    assert "did you mean 'and-mask'?" in str(
        unknown_name("algorithm", written, ["erm", "sand-mask", "and-mask"])
    )


def test_a_name_unlike_all_others_gets_no_suggestion():
    assert closest_name("qqqq", ["erm", "irm"]) is None
    assert closest_name("irm", []) is None


@dataclass(frozen=True)
class Checked:
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    rate: PositiveFloat = 1.0
    count: Annotated[int, Field(ge=2, le=9)] | None = None
    number: int = 0
    word: Literal["one", "two"] = "one"
    wrong: int = None

    def __post_init__(self):
        validate(self)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0}, "Checked: rate must be positive, got 0"),
        ({"rate": float("inf")}, "Checked: rate must be a finite number; got inf"),
        ({"rate": float("nan")}, "Checked: rate must be positive, got nan"),
        ({"rate": "fast"}, "Checked: rate must be a number; got fast"),
        ({"rate": True}, "Checked: rate must be a number; got true"),
        ({"rate": 10**400}, "Checked: rate must be a number; got 1000"),
        ({"share": 1}, "Checked: share must be in [0, 1), got 1"),
        ({"count": 1}, "Checked: count must be at least 2, got 1"),
        ({"count": 10}, "Checked: count must be at most 9, got 10"),
        ({"count": 2.0}, "Checked: count must be a whole number; got 2"),
        ({"number": 2**60}, "Checked: number must lie within ±2⁵³, got 1152921504606846976"),
        ({"number": 10**5000}, "Checked: number must lie within ±2⁵³, got a value of type int"),
        ({"word": "three"}, "Checked: word must be one or two; got three"),
    ],
)
def test_values_outside_declared_bounds_are_rejected(settings, message):
    with pytest.raises(EnvariantError) as refusal:
        Checked(**settings)
    assert str(refusal.value).startswith(message)
    assert len(str(refusal.value)) < 160


def test_values_within_bounds_are_converted_and_defaults_are_not_checked():
    checked = Checked(share=np.float32(0.25), rate=2, count=np.int64(3))
    assert (checked.share, checked.rate, checked.count, checked.wrong) == (0.25, 2.0, 3, None)
    assert [type(value) for value in (checked.share, checked.rate, checked.count)] == [float, float, int]


def test_types_that_exist_for_type_checkers_only_are_not_checked():
    unresolved = make_dataclass("Unresolved", [("rate", "Nowhere", field(default=1))], frozen=True)
    validate(unresolved("anything"))


@pytest.mark.parametrize(
    "text",
    ["f(" + "-" * 5_000 + "1)", "f(\0)", "f(\udcff)", "f(" + "9" * 5_000 + ")", "f" + "(g" * 40 + ")" * 40],
)
@pytest.mark.parametrize("read", [parse, parse_value])
def test_texts_that_break_the_parser_are_rejected_in_a_short_line(read, text):
    with pytest.raises(EnvariantError, match=r"^cannot read ") as refusal:
        read(text)
    assert len(str(refusal.value)) < 200
    str(refusal.value).encode()


@pytest.mark.parametrize("word", ["class", "from", "if", "lambda", "not"])
def test_words_reserved_by_python_are_values(word):
    assert parse(f"table('x, class.csv', target={word}, keep=({word}, b))") == Spec(
        "table", ("x, class.csv",), {"target": word, "keep": (word, "b")}
    )
    assert parse_value(word) == word
    assert parse_value(format_value(word)) == word
