"""From constructed numbers to text: the recommendation is what the numbers support, and says so if that is nothing."""

import re
from dataclasses import replace

import pytest

from envariant.analysis.column_stability import ColumnStability
from envariant.analysis.distribution_shift import Shift
from envariant.analysis.statistics import Interval
from envariant.comparison.data_check import Finding
from envariant.comparison.data_summary import DataSummary
from envariant.comparison.formatting import ci, p_text, score
from envariant.comparison.gathering import choose_baseline
from envariant.comparison.narrative import recommend
from envariant.comparison.page.scores import Drops, Methods
from envariant.comparison.remedies import Remedy
from envariant.comparison.results import Cell, ColumnImportance, ComparisonResults
from envariant.core.metrics import METRICS
from envariant.reporting import charts

NONE = Interval(0.0, 0.0, 0.0, 3)
TREES = "boosted-trees"


def about(mean, half=0.02):
    return Interval(mean, mean - half, mean + half, 5)


def cell(ood, in_domain, gain=None, p=None):
    return Cell(about(ood), about(in_domain), None if gain is None else about(gain), p)


def results(cells, metric="accuracy", importance=None, **data):
    environments = tuple(next(iter(cells.values())))
    summary = DataSummary(**{"target": "death", "environment_column": "hospital", **data})
    trials = dict.fromkeys(cells, 0)
    return ComparisonResults(
        METRICS[metric], environments, cells, importance or {}, trials, (), 5, "erm", data=summary
    )


def recommendation(*arguments, **more):
    """Return the recommendation after checking what holds for all of them."""
    found = recommend(
        arguments[0] if isinstance(arguments[0], ComparisonResults) else results(*arguments, **more)
    )
    assert found.headline
    assert found.text == "\n- ".join([found.headline, *found.bullets])
    assert 1 <= len(found.bullets) <= 4
    assert found.next_steps
    for fact in facts(found):
        assert len(fact.split()) <= 25, fact
        assert fact.endswith("."), fact
    return found


def facts(found):
    return (*found.bullets, *found.further_findings)


DROPS = {
    "erm": {"north": cell(0.85, 0.86), "city": cell(0.45, 0.70)},
    "vrex": {"north": cell(0.78, 0.78, -0.07, 0.01), "city": cell(0.72, 0.72, 0.27, 0.001)},
    "coral": {"north": cell(0.85, 0.86, 0.0, 1.0), "city": cell(0.50, 0.70, 0.05, 0.3)},
    TREES: {"north": cell(0.84, 0.86, -0.01, 1.0), "city": cell(0.44, 0.7, -0.01, 1.0)},
}
HOLDS = {"erm": {"north": cell(0.85, 0.86), "city": cell(0.84, 0.85)}}
CHANGES = ColumnStability("dose", {"north": 0.8, "city": -0.6}, {"north": 0.01, "city": 0.01}, 0.0)
VARIES = ColumnStability("weight", {"north": 0.8, "city": 0.2}, {"north": 0.01, "city": 0.01}, 0.0)
STABLE = ColumnStability("age", {"north": 0.5, "city": 0.5}, {"north": 0.01, "city": 0.01}, 1.0)
IMPORTANT = ColumnImportance(0.1, 0.1, -0.2)


def test_a_drop_a_better_method_its_price_and_the_column():
    found = recommendation(
        DROPS, importance={"erm": {"dose": IMPORTANT, "age": IMPORTANT}}, columns=(CHANGES, STABLE)
    )
    assert found.algorithm == "vrex"
    assert found.headline == "Use V-REx for a new hospital"
    assert found.bullets == (
        "ERM drops significantly at city: accuracy 0.450, 95 % CI [0.430, 0.470], against 0.700 in-domain.",
        "V-REx beats ERM by 0.270 (95 % CI [0.250, 0.290]) at city, p = 0.001 (Holm); its worst score is 0.720 (city).",
        "V-REx is significantly worse than ERM at north (by 0.070).",
        "ERM relies on 'dose', whose relation with the target changes sign between environments.",
    )
    assert found.further_findings == ()
    assert not any("age" in fact.split() for fact in facts(found))
    assert any(
        "Find out why the relation of 'dose' with the target changes sign" in s for s in found.next_steps
    )
    assert found.next_steps[-1].startswith("Before relying on it, evaluate the saved model on an environment")


def test_a_gain_that_is_not_significant_is_no_reason_to_leave_erm():
    noise = {**DROPS, "vrex": {"north": cell(0.85, 0.85, 0.0, 1.0), "city": cell(0.72, 0.72, 0.27, 0.2)}}
    found = recommendation(noise)
    assert found.algorithm == "erm"
    assert found.headline == "Use ERM for a new hospital, but expect a drop"
    assert (
        "None of 3 other methods is significantly better than ERM, whose worst accuracy is 0.450 at city."
        in found.bullets
    )


def test_a_method_with_a_lower_worst_score_than_erm_is_not_recommended():
    bad = {**DROPS, "vrex": {"north": cell(0.40, 0.4, -0.45, 0.001), "city": cell(0.72, 0.72, 0.27, 0.001)}}
    assert recommendation(bad).algorithm == "erm"


def test_a_method_without_results_somewhere_is_not_recommended():
    partial = {**DROPS, "vrex": {"city": DROPS["vrex"]["city"]}}
    assert recommendation(partial).algorithm == "erm"


def test_without_a_drop_it_says_so():
    found = recommendation(HOLDS, columns=(STABLE,))
    assert found.algorithm == "erm"
    assert found.headline == "Use ERM for a new hospital: no significant drop"
    assert found.bullets[0] == (
        "ERM has no significant drop; worst environment city: accuracy 0.840, 95 % CI [0.820, 0.860], against 0.850 in-domain."
    )
    assert found.next_steps == ("Compare again when an environment is added.",)


def test_without_models_trained_on_a_test_environment_the_drop_is_unknown():
    unknown = Interval(float("nan"), -float("inf"), float("inf"), 0)
    alone = {"erm": {name: Cell(about(0.8), unknown) for name in ("north", "city")}}
    found = recommendation(alone)
    assert found.headline == "Use ERM for a new hospital; its drop is unknown"
    assert found.bullets[0] == (
        "ERM: its drop is unknown, because no model was trained on a test environment; worst environment north: accuracy "
        "0.800, 95 % CI [0.780, 0.820]."
    )


def test_the_best_of_several_better_methods_is_recommended():
    better = {**DROPS, TREES: {"north": cell(0.84, 0.86, -0.01, 1.0), "city": cell(0.8, 0.8, 0.35, 0.001)}}
    found = recommendation(better)
    assert found.algorithm == TREES
    assert found.headline == "Use gradient boosting for a new hospital"


def test_an_ordinary_method_is_preferred_to_a_similar_one():
    """Methods come in the order of the study, ordinary ones first."""
    trees = {"north": cell(0.85, 0.86, 0.0, 1.0), "city": cell(0.715, 0.8, 0.265, 0.001)}
    similar = {"erm": DROPS["erm"], TREES: trees, "vrex": DROPS["vrex"]}
    assert recommendation(similar).algorithm == TREES
    trees["city"] = cell(0.69, 0.8, 0.24, 0.001)
    assert recommendation(similar).algorithm == "vrex"


def test_a_method_that_is_worse_in_a_proper_score_or_than_a_constant_is_not_recommended():
    assert recommendation(DROPS).algorithm == "vrex"
    assert recommendation(DROPS, baseline_scores={"north": 0.8, "city": 0.8}).algorithm == "erm"
    worse = {"erm": HOLDS["erm"], "vrex": {"north": cell(0.9, 0.9), "city": cell(0.9, 0.9)}}
    second = results(worse, "log loss")
    assert recommendation(replace(results(DROPS), second=second)).algorithm == "erm"


def test_a_gain_on_average_is_enough():
    names = ("a", "b", "c", "d", "e", "f")
    cells = {
        "linear": {name: cell(0.7, 0.7) for name in names},
        "vrex": {name: cell(0.75 + k / 1000, 0.7, 0.05 + k / 1000, 0.2) for k, name in enumerate(names)},
    }
    found = recommendation(replace(results(cells), baseline_method="linear"))
    assert found.algorithm == "vrex"
    assert any(
        f.startswith("V-REx beats the linear model by 0.053 (95 % CI [0.0") and "on average, p < 0.001" in f
        for f in found.bullets
    )


def test_the_baseline_is_the_simplest_method_within_one_standard_error_of_the_best():
    accuracy, rmse = METRICS["accuracy"], METRICS["RMSE"]
    close = {"linear": {"a": [0.80, 0.84]}, TREES: {"a": [0.82, 0.83]}, "erm": {"a": [0.7, 0.7]}}
    assert choose_baseline(close, accuracy) == "linear"
    far = {**close, TREES: {"a": [0.90, 0.93]}}
    assert choose_baseline(far, accuracy) == TREES
    assert choose_baseline({**far, TREES: {}}, accuracy) == "linear"
    # An environment whose validation rows have no AUROC must not make all means NaN.
    assert choose_baseline({m: {**own, "small": []} for m, own in far.items()}, accuracy) == TREES
    assert choose_baseline({"linear": {"a": [3.0, 3.1]}, "erm": {"a": [2.0, 2.1]}}, rmse) == "erm"


def test_methods_that_were_not_tried_are_named():
    found = recommendation(replace(results(HOLDS), not_tried=("irm", "vrex")))
    assert "Not tried within the time budget: IRM, V-REx." in facts(found)


def test_the_drop_in_the_next_environment_is_predicted():
    cells = {"erm": {name: cell(0.8 - k / 100, 0.85) for k, name in enumerate("abcd")}}
    found = recommendation(cells)
    assert any(
        f.startswith("Mean drop over 4 environments: +0.065; expect +")
        and f.endswith("(95 % prediction interval).")
        for f in facts(found)
    )


def test_for_errors_lower_is_better():
    rmse = {
        "erm": {"north": cell(1.0, 1.0), "city": cell(3.0, 1.5)},
        "irm": {"north": cell(1.1, 1.1, -0.1, 0.5), "city": cell(1.6, 1.6, 1.4, 0.001)},
    }
    numbers = results(rmse, "RMSE")
    assert numbers.drop(numbers.cells["erm"]["city"]).mean == pytest.approx(1.5)
    assert numbers.worst("erm")[0] == "city"
    found = recommendation(numbers)
    assert found.algorithm == "irm"
    assert "RMSE 3.00, 95 % CI [2.98, 3.02], against 1.50 in-domain" in found.bullets[0]


def test_next_steps_for_new_inputs_and_few_rows():
    wide = {"erm": {"north": replace(cell(0.8, 0.8), ood_score=about(0.8, 0.2)), "city": cell(0.8, 0.8)}}
    far = Shift("the others", "city", about(0.4), NONE, NONE, about(0.9))
    steps = recommendation(wide, shifts={"city": far}).next_steps
    assert any(
        s.startswith("Some rows of city resemble no rows of other environments (diversity shift)")
        for s in steps
    )
    assert any(s.startswith("Scores at north are uncertain by more than ± 0.100") for s in steps)


def test_a_drop_that_noise_may_hide_is_reported():
    few = {"erm": {"north": cell(0.84, 0.85), "city": replace(cell(0.8, 0.9), ood_score=about(0.8, 0.15))}}
    found = recommendation(few)
    assert found.headline == "Use ERM for a new hospital; a drop cannot be ruled out"
    assert found.bullets[0] == (
        "No significant drop, but one of up to 0.251 at city cannot be ruled out: accuracy 0.800, against 0.900 "
        "in-domain."
    )


@pytest.mark.parametrize(
    ("metric", "ood", "in_domain", "bound"),
    [
        ("accuracy", 0.8, 0.9, "0.900 (the largest possible)"),
        ("calibration error", 0.2, 0.1, "0.900 (the largest possible)"),
        ("R²", 0.8, 0.9, "1.640"),
        ("log loss", 0.6, 0.5, "1.640"),
    ],
)
def test_a_possible_drop_is_limited_to_the_range_of_the_metric(metric, ood, in_domain, bound):
    noisy = Cell(about(ood, 1.54), about(in_domain, 0.0))
    found = recommendation({"erm": {"north": noisy, "city": noisy}}, metric)
    assert f"one of up to {bound} at north cannot be ruled out" in found.bullets[0]


def test_printed_intervals_are_limited_to_the_range_of_the_metric():
    numbers = results(HOLDS)
    assert ci(numbers, about(0.95, 0.1)) == "[0.850, 1.000]"
    assert ci(numbers, about(0.05, 0.1)) == "[0.000, 0.150]"
    assert ci(numbers, Interval(0.5, -float("inf"), float("inf"), 1)) == "[0.000, 1.000]"
    assert ci(results(HOLDS, "RMSE"), about(0.05, 0.1)) == "[0.000, 0.150]"
    assert ci(results(HOLDS, "RMSE"), Interval(0.5, -float("inf"), float("inf"), 1)) == "[unknown]"


@pytest.mark.parametrize("metric", METRICS)
def test_every_stated_bound_is_possible(metric):
    """Intervals of few replicas are far wider than an accuracy can vary."""
    noisy = Cell(about(0.6, 1.64), about(0.7, 1.64), about(0.2, 1.64), 0.01)
    numbers = results(
        {"erm": {"north": noisy, "city": noisy}, "vrex": {"north": noisy, "city": noisy}}, metric
    )
    lowest, highest = METRICS[metric].bounds
    largest = highest - lowest
    for each in Methods(numbers, "vrex").to_dict()["methods"]["vrex"].values():
        for interval in (each["ood_score"], each["id_score"]):
            assert lowest <= interval["low"] <= interval["high"] <= highest
        assert -largest <= each["gain_over_baseline"]["low"] <= each["gain_over_baseline"]["high"] <= largest
    section = Drops(numbers, "vrex")
    rows = charts.data_of(section.chart().content)
    drawn = [row[key] for row in rows for key in ("score", "low", "high") if row[key] is not None]
    assert lowest <= min(drawn) < max(drawn) <= highest
    texts = [text for row in section.table().rows for text in row] + [*facts(recommend(numbers))]
    stated = [float(x) for t in texts for ends in re.findall(r"\[(.*?)\]", t) for x in ends.split(", ")]
    assert stated
    assert max(map(abs, stated)) <= largest
    assert numbers.drop(noisy).half_width > 2, "tests use the whole uncertainty"


def test_among_many_environments_a_chance_drop_is_not_reported():
    chance = {"city": cell(0.80, 0.835)}
    assert "drops significantly" in recommendation({"erm": chance}).text
    many = {f"site-{k}": cell(0.85, 0.85) for k in range(20)} | chance
    assert "drops significantly" not in recommendation({"erm": many}).text


def test_drops_at_several_environments_are_counted():
    found = recommendation(
        {"erm": {"north": cell(0.5, 0.86), "city": cell(0.45, 0.7), "south": cell(0.8, 0.8)}}
    )
    assert found.bullets[0].startswith(
        "ERM drops significantly at 2 of 3 environments, especially at north: accuracy 0.500"
    )


def test_a_drop_without_remedy_has_a_next_step():
    steps = recommendation({name: DROPS[name] for name in ("erm", "coral")}, columns=(STABLE,)).next_steps
    assert [s for s in steps if s.startswith("No tested method removes the drop.")]
    assert not any("Nothing calls for more" in s for s in steps)


def test_labels_that_help_are_a_next_step():
    fix = Remedy("city", "city", "labels", "20 labels", "accuracy", 0.6, 0.92, about(0.32))
    numbers = replace(results({"erm": DROPS["erm"]}), remedies=(fix,))
    found = recommendation(numbers)
    assert "20 labels bring city from 0.60 to 0.92 accuracy." in facts(found)
    step = "Label 20 rows of a new hospital and adapt the saved model to them (`SavedModel.adapt`)."
    assert step in found.next_steps
    without = replace(numbers, remedies=(replace(fix, gain=about(0.01)),))
    assert not any("adapt" in each for each in recommendation(without).next_steps)


def test_trees_that_are_not_significantly_better_are_not_recommended():
    noise = {**DROPS, TREES: {"north": cell(0.84, 0.86), "city": cell(0.5, 0.7, 0.05, 0.4)}}
    del noise["vrex"]
    assert recommendation(noise).headline.startswith("Use ERM")
    noise[TREES]["city"] = cell(0.6, 0.7, 0.15, 0.001)
    assert recommendation(noise).headline == "Use gradient boosting for a new hospital"


def test_a_useless_model_and_unseen_classes_are_reported():
    cells = {"erm": {"north": cell(0.85, 0.86), "city": cell(0.45, 0.70)}}
    found = recommendation(
        cells, baseline_scores={"north": 0.6, "city": 0.5}, unseen_classes={"city": ("burn",)}
    )
    assert "ERM is no better than the majority-class baseline at city: 0.450 against 0.500." in found.bullets
    assert "Classes that models trained elsewhere cannot predict: 'burn' at city." in found.bullets
    found = recommendation(cells, unseen_classes={"sea": ("Burn", "Cut")})
    assert found.bullets[0] == "No verdict for environments with new classes: 'Burn', 'Cut' at sea."
    found = recommendation(cells, baseline_scores={"north": 0.9, "city": 0.6})
    assert "baseline at 2 of 2 environments, such as city: 0.450 against 0.600." in found.text


def test_possible_leakage_comes_first():
    leak = Finding("target leak", ("hours",), "'hours' alone almost determines death.", "Exclude it.")
    found = recommendation(DROPS, findings=(leak,))
    assert found.headline == "Do not use these results yet: 'hours' may leak the target"
    assert found.bullets[0] == (
        "Possible target leakage: 'hours' alone almost determines death. Results are invalid if it is derived "
        "from it or known only afterwards."
    )
    assert found.next_steps[0].startswith(
        "Check 'hours': if derived from the target or known only afterwards, exclude it"
    )
    together = Finding("joint target leak", ("a", "b"), "'a' and 'b' together determine death.", "Exclude.")
    found = recommendation(HOLDS, findings=(together,))
    assert found.headline == "Do not use these results yet: 'a', 'b' may leak the target"
    assert "'a' and 'b' together determine death." in found.bullets[0]


def test_why_no_method_could_be_compared():
    numbers = replace(
        results(HOLDS), not_applicable=("irm, vrex need 2 training environments, but only 1 would be left",)
    )
    assert (
        "No other method could be compared: irm, vrex need 2 training environments, but only 1 would be left."
        in recommendation(numbers).bullets
    )
    unfinished = {**HOLDS, "vrex": {"city": DROPS["vrex"]["city"]}}
    assert (
        "No other method could be compared: none was evaluated in every environment."
        in recommendation(unfinished).bullets
    )


def test_importance_is_judged_relative_to_the_size_of_an_error():
    grams = {"erm": {"north": cell(300.0, 300.0), "city": cell(310.0, 305.0)}}
    for loss, relies in ((1.0, False), (30.0, True)):
        importance = {"erm": {"dose": ColumnImportance(loss, loss, loss)}}
        found = recommendation(grams, "RMSE", importance, columns=(CHANGES,))
        assert ("relies on 'dose'" in found.text) is relies
        assert not any("are uncertain" in s for s in found.next_steps)


def test_columns_that_vary_are_reported_unless_one_changes_sign():
    importance = {"erm": {"dose": IMPORTANT, "weight": IMPORTANT}}
    found = recommendation(HOLDS, importance=importance, columns=(VARIES, STABLE))
    assert (
        "ERM relies on 'weight', whose relation with the target varies in strength between environments."
        in found.bullets
    )
    assert "'weight'" not in recommendation(HOLDS, importance=importance, columns=(CHANGES, VARIES)).text


def test_numbers_have_a_useful_number_of_decimals():
    def of(metric, value):
        return results({"erm": {"north": cell(value, value)}}, metric)

    assert score(of("accuracy", 0.8), -0.0001, signed=True) == "+0.000"
    assert score(of("RMSE", 1234.5), 1234.5) == "1,234"
    assert score(of("RMSE", 0.01234), 0.01234) == "0.0123"
    assert [p_text(p) for p in (1e-9, 0.0123, None)] == ["p < 0.001", "p = 0.012", "p unknown"]


def test_with_one_replica_only_row_noise_widens_a_drop():
    alone = Cell(about(0.8, 0.13), Interval(0.83, float("-inf"), float("inf"), 1))
    numbers = results({"erm": {"north": alone, "city": alone}})
    drop = numbers.drop(alone)
    assert (drop.mean, drop.half_width) == (pytest.approx(0.03), pytest.approx(0.13))
    assert "drops significantly" not in recommendation(numbers).text


def test_environments_that_were_not_evaluated_are_counted():
    numbers = replace(results(HOLDS), environments=("north", "city", "south"))
    assert "Only 2 of 3 environments could be evaluated." in facts(recommendation(numbers))


def test_environments_named_by_numbers_are_preceded_by_the_column():
    found = recommendation({"erm": {"1": cell(0.85, 0.86), "2": cell(0.45, 0.70)}})
    assert "ERM drops significantly at hospital 2: " in found.bullets[0]
