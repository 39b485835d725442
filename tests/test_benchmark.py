"""Tests of the benchmark scripts: step timing, operation counts, case selection and generated pages."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import step_timing
from envariant.algorithms import recipe
from envariant.core.errors import EnvariantError
from envariant.training.precision import native_bfloat16

BENCHMARKS = Path(step_timing.__file__).parent
CPU = torch.device("cpu")
SMALL = replace(step_timing.CASES["small-mlp"], rows=100, batch_size=8)


def test_flops_of_a_step_equal_the_count_by_hand():
    """Forward: rows × (20·64 + 64·64 + 64); backward: the same for weights, all but layer one for inputs."""
    # The case has enough steps that the first one records the step program, which must not count twice.
    products = step_timing.record_products(SMALL.stack())
    layers = [20 * 64, 64 * 64, 64]
    rows = 3 * 8
    assert products.flops == 2 * rows * (2 * sum(layers) + sum(layers[1:]))
    products.replay()


def test_flops_of_a_stack_are_the_sum_over_its_replicas():
    stack, single = replace(SMALL, replicas=5).stack(), SMALL.stack()
    assert step_timing.record_products(stack).flops == 5 * step_timing.record_products(single).flops


def test_derived_rates_of_a_timing_are_consistent():
    timing = step_timing.measure_case(replace(SMALL, replicas=3), 1e12, 2, torch.get_num_threads())
    assert timing.seconds > 0
    assert timing.rate == timing.flops / timing.seconds
    assert timing.share_of_products == timing.products_seconds / timing.seconds
    assert timing.bytes_predicted == pytest.approx(timing.bytes_of_tensors, rel=0.2)
    assert json.loads(json.dumps(timing.to_dict()))["seconds_per_replica"] == timing.seconds / 3


def test_matrix_product_rate_is_the_best_over_shapes_for_each_native_precision(monkeypatch):
    rates = {2048: 3.0, 8192: 7.0, 25_000: 5.0}
    monkeypatch.setattr(step_timing, "_product_rate", lambda shape, dtype, repeats, device: rates[shape[0]])
    limits = step_timing.matrix_product_rates(CPU, repeats=1)
    assert limits["float32"] == 7.0
    assert ("bfloat16" in limits) == native_bfloat16(CPU)


def test_product_rate_is_operations_per_second(monkeypatch):
    monkeypatch.setattr(
        step_timing, "median_seconds", lambda work, repeats, device, warm: work() is None or 2.0
    )
    assert step_timing._product_rate((3, 4, 5), torch.float32, 1, CPU) == 2 * 3 * 4 * 5 / 2.0


def test_case_selection_rejects_unknown_names_and_unsupported_precisions(monkeypatch):
    assert [case.name for case in step_timing.select_cases(["linear"], CPU)] == ["linear"]
    with pytest.raises(EnvariantError, match="did you mean 'small-mlp'"):
        step_timing.select_cases(["smal-mlp"], CPU)
    monkeypatch.setattr(step_timing, "native_bfloat16", lambda device: False)
    assert {case.precision for case in step_timing.select_cases([], CPU)} == {"float32"}
    with pytest.raises(EnvariantError, match="does not support bfloat16"):
        step_timing.select_cases(["mnist-cnn-bfloat16"], CPU)


def test_script_measures_a_case_in_its_own_process_and_prints_json(capsys, monkeypatch):
    monkeypatch.setattr(step_timing, "matrix_product_rates", lambda device: {"float32": 1e12})
    step_timing.main(["linear-x20", "--repeats", "1"])
    report = json.loads(capsys.readouterr().out)
    assert report["cases"][0]["replicas"] == 20
    assert report["limits"] == {"float32": 1e12}
    assert report["hardware"]["device"] == "cpu"


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark script with its folder on the path, as Python does when it runs the script."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_script_imports(name, script):
    assert script(name).__doc__


def test_every_case_of_the_algorithm_benchmark_names_existing_settings(script):
    for case in script("algorithms").CASES.values():
        recipe(case.algorithm).build(case.changes.get("hyperparameters", {}))


def test_page_of_the_algorithm_benchmark_is_up_to_date(script):
    algorithms = script("algorithms")
    figures = json.loads(algorithms.FIGURES.read_text(encoding="utf-8"))
    assert algorithms.PAGE.read_text(encoding="utf-8") == algorithms.page(figures)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("engine*.json")))
def test_page_of_the_engine_benchmark_is_up_to_date(name, script):
    figures = json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))
    assert (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8") == script("engine").markdown(figures)
