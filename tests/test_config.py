"""Presets compose; keys that are not there and values of another type are refused with the nearest valid name."""

from __future__ import annotations

from itertools import product

import pytest

from medrag import config, methods
from medrag import hardware as machine
from medrag.schedule import shares

COMBINATIONS = list(product(config.presets("model"), config.presets("hardware"), config.presets("task")))


@pytest.mark.parametrize(("model", "hardware", "task"), COMBINATIONS)
def test_every_combination_composes_to_the_same_optimisation(model: str, hardware: str, task: str) -> None:
    run = config.compose([f"model={model}", f"hardware={hardware}", f"task={task}"])
    plain = config.compose([f"task={task}"])
    assert run.task == plain.task
    assert isinstance(run.task.options, methods.load(run.task.method).Config)
    machine.check(run.hardware)
    cut = shares(run.task, run.hardware, methods.the_class(methods.load(run.task.method)).whole_batch)
    assert cut.micro * cut.accumulation * run.hardware.devices == plain.task.global_batch


def test_every_method_has_a_preset() -> None:
    assert {config.compose([f"task={task}"]).task.method for task in config.presets("task")} == set(methods.names())
    assert {"cpu", "1080ti", "2080ti"} <= set(config.presets("hardware"))
    assert {"tiny", "reference"} <= set(config.presets("model"))


def test_the_reference_recipe() -> None:
    dense = config.compose(["model=reference", "task=dense"])
    assert (dense.task.global_batch, dense.task.epochs, dense.task.options.retriever.passage_tokens) == (24, 40, 256)
    joint = config.compose(["model=reference", "task=rag_token"])
    assert (joint.task.global_batch, joint.task.epochs, joint.task.options.answer_tokens) == (16, 30, 256)
    assert not joint.model.encoder.shared


def test_the_command_line_comes_last() -> None:
    run = config.compose(["task.epochs=3", "task=closed_book", "hardware=2080ti", "hardware.micro_batch.closed_book=2", "store=a/b=c"])
    assert (run.task.epochs, run.task.method, run.hardware.precision, run.hardware.micro_batch["closed_book"]) == (3, "closed_book", "fp16", 2)
    assert run.store == "a/b=c"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("task.epoch=3", "no key task.epoch; did you mean task.epochs"),
        ("task.option.negatives=3", "did you mean task.options.negatives"),
        ("task.options.negative=3", "did you mean task.options.negatives"),
        ("epochs=3", "did you mean task.epochs"),
        ("task.epochs=many", "could not be converted"),
        ("hardware.devices=2.5", "could not be converted"),
        ("model=tyni", "allowed: reference, small, tiny; did you mean tiny"),
        ("task=rag", "allowed: .*rag_sequence"),
        ("task.method=rags", "allowed: .*rag_token"),
        ("task.epochs={", "task.epochs"),
        ("nonsense", "key=value"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(argument: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        config.compose([argument])
    assert "\n" not in str(caught.value)


def test_show_is_yaml_that_names_every_key() -> None:
    text = config.show(config.compose(["task=rag_sequence"]))
    assert "rag_sequence: thorough" in text and "refuse_below" in text and "micro_batch" in text


def test_nothing_behind_the_sign_is_an_empty_text() -> None:
    assert config.compose(["task=rag_token", "task.start="]).task.start == ""
