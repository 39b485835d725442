"""The Trainer of Hugging Face transformers with an objective, on a tiny model that is built from a config."""

import pytest
import torch
from torch import nn

import envariant
from envariant import EnvariantError
from envariant.integrations.huggingface import EnvironmentCollator, ObjectiveMixin

SITES = ("north", "south", "west")


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("transformers", reason="the extra `huggingface` is not installed")


@pytest.fixture(scope="module")
def trainer_class(library):
    class InvariantTrainer(ObjectiveMixin, library.Trainer): ...

    return InvariantTrainer


def texts(rows=21):
    """Sequences of tokens from three sites, of unequal numbers, with the site as text."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 12, (rows, 5), generator=generator)
    return [
        {"input_ids": row.tolist(), "labels": int(row.sum() % 2), "environment": SITES[min(i // 5, 2)]}
        for i, row in enumerate(tokens)
    ]


def tiny_model(library, dropout=0.0):
    torch.manual_seed(0)
    config = library.BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return library.BertForSequenceClassification(config)


def trained(
    library, trainer_class, folder, algorithm, steps, *, resume=False, dropout=0.0, data=None, **options
):
    objective = envariant.objective(algorithm, environments=SITES, **options.pop("objective", {}))
    arguments = library.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=6, save_steps=3, logging_steps=1,
        learning_rate=0.05, lr_scheduler_type="constant", optim="sgd", weight_decay=0.0, max_grad_norm=0.0,
        use_cpu=True, disable_tqdm=True, report_to="none", **options,
    )  # fmt: skip
    trainer = trainer_class(
        tiny_model(library, dropout), arguments, train_dataset=data or texts(), eval_dataset=texts(6),
        objective=objective,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def by_hand(library, algorithm, steps):
    """Train with a loop in plain PyTorch on the batches of the sampler."""
    model, rows = tiny_model(library).train(), texts()
    objective = envariant.objective(algorithm, environments=SITES)
    numbers = torch.tensor([SITES.index(row["environment"]) for row in rows])
    tokens = torch.tensor([row["input_ids"] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sampler = envariant.EnvironmentSampler([row["environment"] for row in rows], 2, seed=42)
    features = []
    handle = model.classifier.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    for step in range(steps):
        batch = sampler.at(step)
        logits = model(input_ids=tokens[batch]).logits
        optimizer.zero_grad()
        objective.backward(model, logits, labels[batch], numbers[batch], features=features[-1], step=step)
        optimizer.step()
    handle.remove()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("algorithm", ["groupdro + coral", "vrex + and-mask"])
def test_the_trainer_takes_the_steps_of_a_loop_in_plain_pytorch(library, trainer_class, tmp_path, algorithm):
    # Six steps are more than one epoch of four batches.
    trainer = trained(library, trainer_class, tmp_path, algorithm, 6)
    expected = by_hand(library, algorithm, 6)
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    start = dict(tiny_model(library).named_parameters())
    assert (weights(trainer)["classifier.weight"] - start["classifier.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize(("checkpoint", "algorithm"), [(3, "groupdro + fishr"), (4, "mm-rex + selfreg")])
def test_a_resumed_run_ends_with_the_same_numbers(library, trainer_class, tmp_path, checkpoint, algorithm):
    """Within an epoch of four batches and at its end; with dropout, state and networks of the algorithm."""
    options = {"dropout": 0.3, "objective": {"features": 8, "loss": envariant.Multiclass(2)}}
    whole = trained(library, trainer_class, tmp_path / "whole", algorithm, 7, **options)
    half = trained(
        library, trainer_class, tmp_path / "half", algorithm, checkpoint, **options, save_strategy="epoch"
    )
    assert half.state.global_step == checkpoint
    resumed = trained(library, trainer_class, tmp_path / "half", algorithm, 7, resume=True, **options)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    state, again = whole.objective.state_dict(), resumed.objective.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in state.items())


def test_logs_contain_the_risk_of_every_environment_and_evaluation_uses_the_loss_of_the_model(
    library, trainer_class, tmp_path
):
    trainer = trained(library, trainer_class, tmp_path, "vrex", 2)
    first = trainer.state.log_history[0]
    assert {"loss", "risk north", "risk south", "risk west", "vrex penalty"} <= first.keys()
    held_out = [{**row, "environment": "east"} for row in texts(6)]
    loss = trainer.evaluate(held_out)["eval_loss"]
    labels = torch.tensor([row["labels"] for row in held_out])
    with torch.no_grad():
        logits = trainer.model(input_ids=torch.tensor([row["input_ids"] for row in held_out])).logits
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert trainer.objective.environments == SITES


def test_accumulated_batches_give_the_mean_of_their_gradients(library, trainer_class, tmp_path):
    one = trained(library, trainer_class, tmp_path, "vrex", 1, gradient_accumulation_steps=2)
    model, rows = tiny_model(library).train(), texts()
    objective = envariant.objective("vrex", environments=SITES)
    sampler = envariant.EnvironmentSampler([row["environment"] for row in rows], 2, seed=42)
    for k in range(2):
        batch = [rows[i] for i in sampler.at(k)]
        logits = model(input_ids=torch.tensor([row["input_ids"] for row in batch])).logits
        numbers = torch.tensor([SITES.index(row["environment"]) for row in batch])
        (objective(logits, torch.tensor([row["labels"] for row in batch]), numbers) / 2).backward()
    for name, p in model.named_parameters():
        expected = p.detach() if p.grad is None else p.detach() - 0.05 * p.grad
        torch.testing.assert_close(weights(one)[name], expected, rtol=1e-5, atol=1e-6)


def test_the_collator_numbers_environments_and_marks_others():
    collator = EnvironmentCollator(lambda rows: {"n": len(rows)}, ("2007", "2008"), "year")
    assert collator([{"year": 2008.0}, {"year": "2007"}, {"year": 1999}])["year"].tolist() == [1, 0, -1]
    assert collator([{}]) == {"n": 1}


@pytest.mark.parametrize(
    ("data", "batch_size", "message"),
    [
        ([{"environmnet": "a"}], 6, "unknown column 'environment'; did you mean 'environmnet'?"),
        ([{**row, "environment": "Nort"} for row in texts()], 6, "unknown environment 'Nort'; did you mean 'north'"),
        (None, 6, "train_dataset must be a data set of dictionaries with a length; got None"),
        (texts(), 4, "per_device_train_batch_size must be a multiple of the 3 training environments; got 4"),
    ],
)  # fmt: skip
def test_wrong_data_are_rejected_in_one_line(library, trainer_class, tmp_path, data, batch_size, message):
    arguments = library.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", per_device_train_batch_size=batch_size
    )
    objective = envariant.objective("vrex", environments=SITES)
    with pytest.raises(EnvariantError, match=r"^trainer: ") as error:
        trainer_class(tiny_model(library), arguments, train_dataset=data, objective=objective).train()
    assert message in str(error.value)


def test_environments_may_be_tensors():
    """Otherwise all rows would be of one unknown environment, and no penalty would act."""
    collator = EnvironmentCollator(lambda rows: {}, ("0", "1"))
    numbers = collator([{"environment": torch.tensor(k)} for k in (1, 0, 2)])["environment"]
    assert numbers.tolist() == [1, 0, -1]
