"""The bench: what it counts is what there is to count, and what it times is what runs."""

import json
from dataclasses import replace

import pytest
import torch

from envariant import benchmark
from envariant.cli.app import main
from envariant.core.errors import EnvariantError
from envariant.training.precision import native_bfloat16

CPU = torch.device("cpu")
SMALL = replace(benchmark.CASES["small-mlp"], rows=100, batch_size=8)


def test_the_products_of_a_step_are_counted():
    """Rows × (20·64 + 64·64 + 64) forwards, as many for the weights, and all but the first for the inputs."""
    # So long a run is recorded at its first step, which must not count twice.
    products = benchmark.products_of(SMALL.group())
    layers = [20 * 64, 64 * 64, 64]
    rows = 3 * 8
    assert products.flops == 2 * rows * (2 * sum(layers) + sum(layers[1:]))
    products.again()


def test_a_stack_has_as_many_products_as_its_replicas_together():
    many, alone = replace(SMALL, replicas=5).group(), SMALL.group()
    assert benchmark.products_of(many).flops == 5 * benchmark.products_of(alone).flops


def test_a_measured_case_holds_together():
    figure = benchmark.measure(replace(SMALL, replicas=3), 1e12, 2, torch.get_num_threads())
    assert figure.seconds > 0
    assert figure.rate == figure.flops / figure.seconds
    assert figure.share_of_products == figure.products_seconds / figure.seconds
    assert figure.bytes_predicted == pytest.approx(figure.bytes_of_tensors, rel=0.2)
    assert json.loads(json.dumps(figure.to_dict()))["seconds_per_replica"] == figure.seconds / 3


def test_limits_are_the_best_of_the_shapes_for_each_precision_the_processor_has(monkeypatch):
    rates = {2048: 3.0, 8192: 7.0, 25_000: 5.0}
    monkeypatch.setattr(benchmark, "_product_rate", lambda shape, dtype, repeats, device: rates[shape[0]])
    limits = benchmark.limits(CPU, repeats=1)
    assert limits["float32"] == 7.0
    assert ("bfloat16" in limits) == native_bfloat16(CPU)


def test_a_rate_is_operations_by_seconds(monkeypatch):
    monkeypatch.setattr(
        benchmark, "median_seconds", lambda work, repeats, device, warm: work() is None or 2.0
    )
    assert benchmark._product_rate((3, 4, 5), torch.float32, 1, CPU) == 2 * 3 * 4 * 5 / 2.0


def test_cases_are_found_by_name_and_those_the_machine_cannot_run_are_left_out(monkeypatch):
    assert [case.name for case in benchmark.named(["linear"], CPU)] == ["linear"]
    with pytest.raises(EnvariantError, match="did you mean 'small-mlp'"):
        benchmark.named(["smal-mlp"], CPU)
    monkeypatch.setattr(benchmark, "native_bfloat16", lambda device: False)
    assert {case.precision for case in benchmark.named([], CPU)} == {"float32"}
    with pytest.raises(EnvariantError, match="this device has no products in bfloat16"):
        benchmark.named(["mnist-cnn-bfloat16"], CPU)


def test_bench_prints_a_table_or_one_json_object(capsys):
    arguments = ["bench", "--case", "linear-x20", "--repeats", "1", "--device", "cpu"]
    main(arguments)
    shown = capsys.readouterr().out
    assert "linear-x20" in shown
    assert "GFLOP/s in float32" in shown
    main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["cases"][0]["replicas"] == 20
    assert found["limits"]["float32"] > 0
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--case", "lineer"])
    assert stopped.value.code == 2
    assert "did you mean 'linear'" in capsys.readouterr().err
