"""Presets compose; keys that are not there and values of another type are refused with the nearest valid name."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from medrag import config, methods
from medrag import hardware as machine
from medrag.config import Run
from medrag.hardware import Hardware
from medrag.schedule import shares
from medrag.train import deepspeed_config

CARDS = [name for name in config.presets("hardware") if name != "cpu"]
CHIPS: dict[str, tuple[int, int, float, int, float]] = {
    "1080ti": (28, 128, 1.582, 352, 11),
    "p100": (56, 64, 1.303, 4096, 1.43),
    "t4": (40, 512, 1.59, 256, 10),
    "v100-16g": (80, 512, 1.53, 4096, 1.758),
    "2080ti": (68, 256, 1.545, 352, 14),
    "3060-12g": (28, 256, 1.777, 192, 15),
    "3090": (82, 256, 1.695, 384, 19.5),
    "4090": (128, 256, 2.52, 384, 21),
    "a10": (72, 512, 1.695, 384, 12.5),
    "a100-40g": (108, 1024, 1.41, 5120, 2.43),
    "a100-80g": (108, 1024, 1.41, 5120, 3.186),
    "h100": (132, 2048, 1.83, 5120, 5.23),
    "h200": (132, 2048, 1.83, 6144, 6.25),
}
"""multiprocessors; multiplications with addition that one does in a cycle, summed in fp32: on tensor cores where there are any, which GeForce cards
run at half their rate; GHz; bits of the memory's bus; gigabits a second on each"""


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, str], Run]:
    """Every model with every task, on the hardware that runs start from."""
    return {key: config.compose([f"model={key[0]}", f"task={key[1]}"]) for key in product(config.presets("model"), config.presets("task"))}


@pytest.mark.parametrize("name", config.presets("hardware"))
def test_a_hardware_preset_changes_nothing_else(name: str, plain: dict[tuple[str, str], Run]) -> None:
    """Whatever the model and the task: neither the rest of the run nor the optimisation that DeepSpeed is asked for."""
    for (model, task), other in plain.items():
        run = config.compose([f"model={model}", f"hardware={name}", f"task={task}"])
        assert replace(run, hardware=other.hardware) == other
        assert isinstance(run.task.options, methods.load(run.task.method).Config)
        machine.check(run.hardware)
        assert set(run.hardware.micro_batch) <= {"default", *methods.names()}
        cut = shares(run.task, run.hardware, methods.the_class(run.task.method).whole_batch)
        assert cut.micro * cut.accumulation * run.hardware.devices == run.task.global_batch
        asked = deepspeed_config(run.task, run.hardware, cut)
        usual = deepspeed_config(other.task, Hardware(), shares(other.task, Hardware(), whole_batch=False))
        for key in ("train_batch_size", "gradient_clipping", "optimizer"):
            assert asked[key] == usual[key]
        assert asked["train_micro_batch_size_per_gpu"] * asked["gradient_accumulation_steps"] * run.hardware.devices == asked["train_batch_size"]
        assert {kind: asked[kind]["enabled"] for kind in ("fp16", "bf16")} == {kind: run.hardware.precision == kind for kind in ("fp16", "bf16")}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_what_it_is(name: str) -> None:
    """Arithmetic and bandwidth follow from the chip; the precision is the best that it has, and the builds are those that carry it."""
    card = config.compose([f"hardware={name}"]).hardware
    multiprocessors, each_cycle, gigahertz, bits, gigabits = CHIPS[name]
    assert card.teraflops == pytest.approx(multiprocessors * each_cycle * 2 * gigahertz / 1000, rel=0.01)
    assert card.gigabytes_a_second == pytest.approx(bits * gigabits / 8, rel=0.01)
    assert card.precision == ("bf16" if card.compute_capability >= 8 else "fp16" if card.compute_capability >= 7 else "fp32")
    for wrong in ("fp16", "bf16"):
        if card.compute_capability < {"fp16": 7, "bf16": 8}[wrong]:
            with pytest.raises(ValueError, match=f"precision={wrong} needs compute capability .* allows fp32"):
                machine.check(replace(card, precision=wrong))
    assert card.device == "cuda" and card.memory_gib > 10
    assert ("2.14" in card.torch_build) == (card.compute_capability < 7.5), "CUDA 13 starts with 7.5, and torch 2.14 is the last with 12.6"
    assert card.faiss_build.startswith("faiss-gpu" if card.compute_capability >= 7 else "none")
    assert card.devices == (2 if name in ("1080ti", "2080ti") else 1)


def test_every_method_has_a_preset() -> None:
    assert {config.compose([f"task={task}"]).task.method for task in config.presets("task")} == set(methods.names())
    assert set(config.presets("hardware")) == {"cpu", *CHIPS}
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
        ("hardware.micro_batch.fidd=3", "no key hardware.micro_batch.fidd; did you mean hardware.micro_batch.fid"),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hardware.devices=0"], r"hardware\.devices=0; it must be 1 or more"),
        (["hardware.threads=-1"], r"hardware\.threads=-1; it must be 0 or more"),
        (["hardware.memory_gib=-8"], r"hardware\.memory_gib=-8\.0; it must be 0 or more"),
        (["hardware.micro_batch.fid=0"], r"hardware\.micro_batch\.fid=0; it must be 1 or more"),
        (["hardware.device=gpu"], r"hardware\.device=gpu; allowed: cpu, cuda"),
        (["hardware.precision=int8"], r"hardware\.precision=int8; allowed: fp32, fp16, bf16"),
        (["hardware.precision=fp16"], "needs a GPU; on a CPU fp32 and bf16 are allowed"),
        (["hardware.zero_stage=4"], r"hardware\.zero_stage=4; allowed: 0, 1, 2, 3"),
        (["hardware.offload=true"], r"hardware\.offload=true needs hardware\.zero_stage of 1, 2 or 3"),
        (["hardware=2080ti", "hardware.precision=bf16"], r"bf16 needs compute capability 8\.0; hardware\.compute_capability=7\.5 allows fp32, fp16"),
    ],
)
def test_what_hardware_cannot_do_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        machine.check(config.compose(arguments).hardware)
    assert "\n" not in str(caught.value)


def test_a_preset_is_named_as_its_card_is() -> None:
    assert config.compose(["hardware=v100-16g", "hardware.memory_gib=31.7"]).hardware.memory_gib == 31.7
    with pytest.raises(ValueError, match=r"hardware=v100_16g; allowed: .*did you mean v100-16g\?"):
        config.compose(["hardware=v100_16g"])


def test_show_is_yaml_that_names_every_key() -> None:
    text = config.show(config.compose(["task=rag_sequence"]))
    assert "rag_sequence: thorough" in text and "refuse_below" in text and "micro_batch" in text


def test_nothing_behind_the_sign_is_an_empty_text() -> None:
    assert config.compose(["task=rag_token", "task.start="]).task.start == ""
