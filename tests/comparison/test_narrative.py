"""From hand-made numbers to words: it recommends what the numbers bear out, and says so when that is nothing."""

from dataclasses import replace

import pytest
from envariant.studies.baselines import boosted_trees

from envariant.analysis.column_stability import ColumnStability
from envariant.analysis.distribution_shift import Shift
from envariant.analysis.statistics import Interval
from envariant.comparison.narrative import chance, drop, shown, verdict
from envariant.comparison.results import Cell, Evidence, Reliance
from envariant.core.metrics import METRICS

NONE = Interval(0.0, 0.0, 0.0, 3)


def about(mean, half=0.02):
    return Interval(mean, mean - half, mean + half, 5)


def cell(score, inside, gain=None, p=None):
    return Cell(about(score), about(inside), None if gain is None else about(gain), p)


def evidence(cells, metric="accuracy", reliance=None):
    places = tuple(next(iter(cells.values())))
    return Evidence(METRICS[metric], places, cells, reliance or {}, dict.fromkeys(cells, 0), (), 5)


FALLS = {
    "erm": {"north": cell(0.85, 0.86), "city": cell(0.45, 0.70)},
    "vrex": {"north": cell(0.78, 0.78, -0.07, 0.01), "city": cell(0.72, 0.72, 0.27, 0.001)},
    "coral": {"north": cell(0.85, 0.86, 0.0, 1.0), "city": cell(0.50, 0.70, 0.05, 0.3)},
    boosted_trees.NAME: {"north": cell(0.84, 0.86, -0.01, 1.0), "city": cell(0.44, 0.7, -0.01, 1.0)},
}
TURNS = ColumnStability("dose", {"north": 0.8, "city": -0.6}, {"north": 0.01, "city": 0.01}, 0.0)
STEADY = ColumnStability("age", {"north": 0.5, "city": 0.5}, {"north": 0.01, "city": 0.01}, 1.0)
LEANS = {"erm": {"dose": Reliance(0.1, 0.1, -0.2), "age": Reliance(0.1, 0.1, 0.1)}}


def test_a_fall_a_method_that_helps_its_price_and_the_column():
    found = verdict(evidence(FALLS, reliance=LEANS), [TURNS, STEADY], {}, "death")
    assert found.recommended == "vrex"
    for words in (
        "An ordinary model (ERM) that predicts death gets worse at places that it was not trained on, at city: "
        "accuracy 0.450, against 0.700 where rows of city were in training.",
        "V-REx is better at city by 0.270, beyond noise (p = 0.001), and its own worst is city with 0.720: use V-REx.",
        "It has its price: it is worse than ERM at north (0.070).",
        "Gradient-boosted trees do no better: accuracy 0.440 at their worst place, city.",
        "ERM leans on 'dose', whose relation with the target points one way in some places and the other way",
    ):
        assert words in found.paragraph
    assert "age" not in found.paragraph
    assert any("Find out why 'dose' means something else" in step for step in found.next)


def test_a_gain_within_noise_is_no_reason_to_leave_erm():
    noise = {**FALLS, "vrex": {"north": cell(0.85, 0.85, 0.0, 1.0), "city": cell(0.72, 0.72, 0.27, 0.2)}}
    found = verdict(evidence(noise), [], {}, "death")
    assert found.recommended == "erm"
    assert (
        "No method tried (V-REx, CORAL) helps beyond noise where ERM is worst, at city: stay with ERM."
        in (found.paragraph)
    )


def test_a_method_that_helps_there_and_is_worse_elsewhere_than_erm_ever_was_is_not_recommended():
    bad = {**FALLS, "vrex": {"north": cell(0.40, 0.4, -0.45, 0.001), "city": cell(0.72, 0.72, 0.27, 0.001)}}
    assert verdict(evidence(bad), [], {}, "death").recommended == "erm"


def test_a_method_that_is_missing_somewhere_is_not_recommended():
    partial = {**FALLS, "vrex": {"city": FALLS["vrex"]["city"]}}
    assert verdict(evidence(partial), [], {}, "death").recommended == "erm"


def test_where_nothing_falls_it_says_so():
    holds = {"erm": {"north": cell(0.85, 0.86), "city": cell(0.84, 0.85)}}
    found = verdict(evidence(holds), [STEADY], {}, "death")
    assert found.recommended == "erm"
    assert (
        "holds at places that it was not trained on: at the worst, city, accuracy 0.840, against 0.850 where "
        "rows of city were in training." in found.paragraph
    )
    assert found.next == ("Nothing here calls for more than ERM; compare again when a new place is added.",)


def test_trees_that_are_better_are_named_though_they_are_no_method_of_ours():
    better = {
        **FALLS,
        boosted_trees.NAME: {"north": cell(0.84, 0.86, -0.01, 1.0), "city": cell(0.8, 0.8, 0.35, 0.001)},
    }
    found = verdict(evidence(better), [], {}, "death")
    assert found.recommended == "vrex"
    assert (
        "Gradient-boosted trees reach accuracy 0.800 at their worst place, city; whether that is better than "
        "V-REx was not tested." in found.paragraph
    )


def test_of_errors_lower_is_better():
    rmse = {
        "erm": {"north": cell(1.0, 1.0), "city": cell(3.0, 1.5)},
        "irm": {"north": cell(1.1, 1.1, -0.1, 0.5), "city": cell(1.6, 1.6, 1.4, 0.001)},
    }
    found = evidence(rmse, "RMSE")
    assert drop(found, found.cells["erm"]["city"])[0] == pytest.approx(1.5)
    assert found.worst("erm")[0] == "city"
    said = verdict(found, [], {}, "price")
    assert said.recommended == "irm"
    assert "RMSE 3.00, against 1.50 where rows of city were in training" in said.paragraph


def test_what_to_do_about_rows_that_occur_nowhere_else_and_too_few_rows():
    wide = {"erm": {"north": replace(cell(0.8, 0.8), score=about(0.8, 0.2)), "city": cell(0.8, 0.8)}}
    far = Shift("the others", "city", about(0.4), NONE, NONE, about(0.9))
    steps = verdict(evidence(wide), [], {"city": far}, "death").next
    assert any(
        step.startswith("Some rows of city look like none elsewhere (diversity shift)") for step in steps
    )
    assert any(step.startswith("Scores at north are uncertain by more than ± 0.100") for step in steps)


def test_a_loss_that_the_noise_may_hide_is_not_called_holding():
    few = {"erm": {"north": cell(0.84, 0.85), "city": replace(cell(0.8, 0.9), score=about(0.8, 0.15))}}
    found = verdict(evidence(few), [], {}, "death")
    assert "holds" not in found.paragraph.replace("to say that it holds", "")
    assert (
        "accuracy 0.800, against 0.900 where rows of city were in training; it may lose up to 0.251 there."
        in (found.paragraph)
    )


def test_of_many_places_one_that_seems_to_lose_by_chance_is_not_told():
    chance_ = {"city": cell(0.80, 0.835)}
    assert "gets worse" in verdict(evidence({"erm": chance_}), [], {}, "death").paragraph
    many = {f"place {k}": cell(0.85, 0.85) for k in range(20)} | chance_
    assert "gets worse" not in verdict(evidence({"erm": many}), [], {}, "death").paragraph


def test_a_loss_that_nothing_mends_ends_in_something_to_do():
    lost = {name: FALLS[name] for name in ("erm", "coral")}
    steps = verdict(evidence(lost), [STEADY], {}, "death").next
    assert [step for step in steps if step.startswith("Nothing that was tried mends the loss.")]
    assert not any("Nothing here calls for more" in step for step in steps)


def test_trees_that_are_better_by_noise_are_not_to_be_taken():
    noise = {**FALLS, boosted_trees.NAME: {"north": cell(0.84, 0.86), "city": cell(0.5, 0.7, 0.05, 0.4)}}
    del noise["vrex"]
    said = verdict(evidence(noise), [], {}, "death").paragraph
    assert (
        "Gradient-boosted trees reach accuracy 0.500 at their worst place, city, no better beyond noise."
        in (said)
    )
    noise[boosted_trees.NAME]["city"] = cell(0.6, 0.7, 0.15, 0.001)
    said = verdict(evidence(noise), [], {}, "death").paragraph
    assert "But gradient-boosted trees, as ordinary, do better: accuracy 0.600" in said


def test_a_model_that_is_no_better_than_none_and_a_class_that_occurs_once_are_told():
    found = evidence({"erm": {"north": cell(0.85, 0.86), "city": cell(0.45, 0.70)}})
    found = replace(found, guess={"north": 0.6, "city": 0.5}, only={"city": ("burn",)})
    said = verdict(found, [], {}, "wound").paragraph
    assert "At city (0.500) it is no better than always saying the most frequent class" in said
    assert "Some classes occur at one place: 'burn' at city only. No model" in said


def test_a_column_of_an_error_in_large_units_is_leaned_on_when_it_is_worth_a_share_of_it():
    grams = {"erm": {"north": cell(300.0, 300.0), "city": cell(310.0, 305.0)}}
    for worth, told in ((1.0, False), (30.0, True)):
        found = evidence(grams, "RMSE", {"erm": {"dose": Reliance(worth, worth, worth)}})
        said = verdict(found, [TURNS], {}, "mass")
        assert ("leans on 'dose'" in said.paragraph) is told
        assert not any("are uncertain" in step for step in said.next)


def test_numbers_have_as_many_decimals_as_say_something():
    def of(metric, score):
        return evidence({"erm": {"north": cell(score, score)}}, metric)

    assert shown(of("accuracy", 0.8), -0.0001, signed=True) == "+0.000"
    assert shown(of("RMSE", 1234.5), 1234.5) == "1,234"
    assert shown(of("RMSE", 0.01234), 0.01234) == "0.0123"
    assert [chance(p) for p in (1e-9, 0.0123, None)] == ["p < 0.001", "p = 0.012", "p unknown"]


def test_of_one_replica_the_rows_are_the_noise_of_a_loss():
    alone = Cell(about(0.8, 0.13), Interval(0.83, float("-inf"), float("inf"), 1))
    found = evidence({"erm": {"north": alone, "city": alone}})
    assert drop(found, alone) == (pytest.approx(0.03), pytest.approx(0.13))
    assert "gets worse" not in verdict(found, [], {}, "death").paragraph


def test_a_time_that_was_over_early_is_said_first():
    found = evidence({"erm": {"north": cell(0.85, 0.86), "city": cell(0.84, 0.85)}})
    found = replace(found, places=("north", "city", "south"))
    assert verdict(found, [], {}, "death").paragraph.startswith(
        "Only 2 of 3 places could be tried in the time there was. "
    )
