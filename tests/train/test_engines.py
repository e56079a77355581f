"""The engine at every stage of ZeRO, in every precision, with and without offload and checkpointing, in one process and in two.

All combinations work on a CPU: stages 0 to 3 x fp32, bf16, fp16 x offload of the optimizer (from stage 1 on) x checkpointing, 42 in all. fp16 runs
here only since DeepSpeed is told that a CPU can do it, which ``hardware.check`` does not believe; on a card none of this has been run. Stage 0 in
half precision is run as stage 1. What is expected of each comes from a loop in plain PyTorch, from fewer processes, or from an undisturbed run.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import Tiny

from medrag import files, weights

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from ranks import BATCH, RATE, Job, Seen, made  # noqa: E402

PRECISIONS = ("fp32", "bf16", "fp16")
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-4, "bf16": 5e-3}
"""of losses near 6, against fp32 or another number of ranks"""
PLACES = [(stage, offload) for stage in range(4) for offload in (False, True) if stage or not offload]
FEW = [(0, False), (2, True), (3, False), (3, True)]
STEPS = [0, 1, 2, 3]
UNROUNDED = [("bf16", 1), ("fp16", 3)]
CROSSINGS = [("fp32", (0, False), (3, False)), ("fp32", (3, True), (2, False)), ("bf16", (2, True), (3, False)), ("fp16", (3, False), (1, True))]
"""from which stage and offload to which others a state is brought, by precision"""


def name(precision: str, place: tuple[int, bool], *more: str) -> str:
    return " ".join([precision, f"zero{place[0]}", *(["offload"] if place[1] else []), *more])


def job(precision: str, place: tuple[int, bool], *more: str, **settings: object) -> Job:
    return Job(name(precision, place, *more), precision=precision, zero_stage=place[0], offload=place[1], **{"steps": STEPS, **settings})  # type: ignore[arg-type]


def not_finite(precision: str, stage: int) -> Job:
    """One step more than usual, whose gradient is not."""
    return job(precision, (stage, False), "not finite", steps=[0, 7, 1, 2], burst=1)


def jobs(world: int) -> list[Job]:
    """What each number of processes does: two do all, one does what others are held to, and some of the rest."""
    found = []
    for precision in PRECISIONS:
        for place in PLACES if world == 2 or precision == "fp32" else FEW:
            kept = f"{name(precision, place)} x{world}"
            found.append(job(precision, place, keep=kept, keep_after=2))
            if world == 2 or place == (3, True):
                found.append(job(precision, place, "resumed", restore=kept, steps=STEPS[2:], poison=1))
            if world == 2:
                found.append(job(precision, place, "checkpointing", checkpointing=True, steps=STEPS[:2]))
    for place in [(0, False), (3, False)] if world == 1 else [(3, False), (3, True)]:
        found += [job("fp32", place, kind, method=kind, answers=True) for kind in ("rag_token", "bag", "dense")]
    if world == 1:
        return [*found, job("bf16", (2, False), "fresh", method="fid", steps=[], answers=True), not_finite("fp32", 0)]
    found += [job("fp32", (2, False), "dense", method="dense"), job("fp32", (3, False), "dense checkpointing", method="dense", checkpointing=True)]
    found += [job(precision, (stage, False), "fid", method="fid", answers=True) for precision, stage in UNROUNDED]
    found.append(job("bf16", (3, False), "fresh", method="fid", steps=[], answers=True))
    found += [not_finite(precision, stage) for precision, stage in (("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 3))]
    found.append(job("fp16", (2, False), "overflow", burst=1, keep="overflow x2", keep_after=2))
    return [*found, job("fp16", (3, False), "from overflow", restore="overflow x2", steps=STEPS[2:])]


def crossed(world: int) -> list[Job]:
    """Steps that go on from a state which the other number of processes kept at another stage."""
    return [job(precision, to, "crossed", restore=f"{name(precision, of)} x{3 - world}", steps=STEPS[2:]) for precision, of, to in CROSSINGS]


def run(home: Path, folder: str, world: int, asked: list[Job]) -> dict[str, Seen]:
    """Have so many processes do jobs, as a user would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / folder).mkdir()
    files.write_json(home / folder / "jobs.json", [asdict(one) for one in asked])
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(world), "--master_port", str(port), "--log_level", "error"] if world > 1 else []
    command = [sys.executable, *launcher, str(HERE / "ranks.py"), str(home / folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    seen: dict[str, dict[str, object]] = json.loads((home / folder / "seen.json").read_text("utf-8"))
    return {key: Seen(**value) for key, value in seen.items()}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def one(home: Path) -> dict[str, Seen]:
    return run(home, "one", 1, jobs(1))


@pytest.fixture(scope="module")
def two(home: Path, one: dict[str, Seen]) -> dict[str, Seen]:
    return run(home, "two", 2, jobs(2) + crossed(2))


@pytest.fixture(scope="module")
def back(home: Path, two: dict[str, Seen]) -> dict[str, Seen]:
    """One process again, with what two have kept; and a loss scale that can fall no further."""
    state = weights.read(home / "overflow x2.safetensors")
    state["scaler"] = torch.tensor([1.0, 5.0, 1.0, 1.0], dtype=torch.float64)
    weights.write(state, home / "smallest.safetensors")
    return run(home, "back", 1, [*crossed(1), job("fp16", (2, False), "smallest", restore="smallest", steps=STEPS[2:], burst=0)])


@pytest.fixture(scope="module")
def plain(tiny: Tiny) -> list[float]:
    """What plain PyTorch learns: the whole batch at once, AdamW, a clipped gradient."""
    torch.set_num_threads(1)
    method = made("closed_book", tiny, checkpointing=False)
    matrices, vectors = ([p for p in method.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], lr=RATE)
    losses = []
    for step in STEPS:
        loss = method(method.collate([tiny.examples[(BATCH * step + number) % len(tiny.examples)] for number in range(BATCH)]))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        adam.step()
        losses.append(float(loss.detach()))
    return losses


def test_every_combination_learns_what_plain_pytorch_learns(one: dict[str, Seen], two: dict[str, Seen], plain: list[float]) -> None:
    assert plain[-1] < plain[0]
    for precision in PRECISIONS:
        for place in PLACES:
            key = name(precision, place)
            assert two[key].losses == pytest.approx(plain, abs=TOLERANCES[precision]), key
            assert two[key].applied == [True] * len(STEPS), key
            if key in one:
                assert one[key].losses == pytest.approx(plain, abs=TOLERANCES[precision]), key


def test_two_processes_learn_what_one_does(one: dict[str, Seen], two: dict[str, Seen]) -> None:
    compared = one.keys() & two.keys()
    assert {name(precision, place) for precision in PRECISIONS for place in FEW} < compared
    for key in compared:
        tolerance = 1e-3 if "dense" in key else TOLERANCES[key.split()[0]]
        assert two[key].losses == pytest.approx(one[key].losses, abs=tolerance), key


def test_checkpointing_changes_nothing(two: dict[str, Seen]) -> None:
    for precision in PRECISIONS:
        for place in PLACES:
            assert two[name(precision, place, "checkpointing")].losses == two[name(precision, place)].losses[:2]


def test_a_restored_run_goes_on_exactly_though_a_step_is_discarded(one: dict[str, Seen], two: dict[str, Seen]) -> None:
    """The discarded step's gradient is NaN; it comes between the two that follow the restored state."""
    compared = [(seen, key) for seen in (one, two) for key in seen if f"{key} resumed" in seen]
    assert len(compared) == (1 + len(PLACES)) * len(PRECISIONS)
    for seen, key in compared:
        assert seen[f"{key} resumed"].losses == seen[key].losses[2:], key
        assert seen[f"{key} resumed"].scaler == seen[key].scaler, key
        assert len(seen[key].scaler) == (4 if "fp16" in key else 0), key


def test_a_state_goes_to_other_stages_and_numbers_of_processes(two: dict[str, Seen], back: dict[str, Seen], one: dict[str, Seen]) -> None:
    for precision, of, to in CROSSINGS:
        for seen, before in ((two, one), (back, two)):
            expected = before[name(precision, of)].losses[2:]
            assert seen[name(precision, to, "crossed")].losses == pytest.approx(expected, abs=TOLERANCES[precision]), (precision, of, to)


def test_zero_3_holds_parts_between_steps_and_a_few_layers_in_them(one: dict[str, Seen], two: dict[str, Seen]) -> None:
    for seen in (one, two):
        for precision in PRECISIONS:
            found = seen[name(precision, (3, False))]
            assert found.held < 0.02 * found.elements and found.live < 0.7 * found.elements
            assert seen[name(precision, (2, True))].held == found.elements


@pytest.mark.parametrize("kind", ["rag_token", "bag", "dense"])
@pytest.mark.parametrize(("world", "place"), [(1, (3, False)), (2, (3, False)), (2, (3, True))])
def test_zero_3_measures_answers_and_saves_as_one_plain_process_does(
    one: dict[str, Seen], two: dict[str, Seen], home: Path, kind: str, world: int, place: tuple[int, bool]
) -> None:
    """Then it goes on learning: the last loss comes after that."""
    plain, key = name("fp32", (0, False), kind), name("fp32", place, kind)
    expected, found = one[plain], (one if world == 1 else two)[key]
    assert found.texts == expected.texts and any(found.texts)
    assert found.logprobs == pytest.approx(expected.logprobs, abs=5e-3)
    assert found.validated == pytest.approx(expected.validated, abs=1e-4)
    assert found.losses == pytest.approx(expected.losses, abs=1e-3 if kind == "dense" else TOLERANCES["fp32"])
    whole, written = (weights.read(home / f"{which}.safetensors") for which in (f"{plain} x1", f"{key} x{world}"))
    assert written.keys() == whole.keys()
    for tensor, like in ((written[one_of], whole[one_of]) for one_of in whole):
        assert tensor.dtype == like.dtype and tensor.shape == like.shape
    # a weight whose gradient is nothing but rounding is moved by Adam all the same, each time elsewhere
    near = [float(((written[one_of] - like).abs() < 1e-4).double().mean()) for one_of, like in whole.items()]
    assert sum(near) / len(near) > 0.95


def test_a_batch_contrasted_as_a_whole_is_shared_out_at_every_stage(one: dict[str, Seen], two: dict[str, Seen]) -> None:
    expected = one[name("fp32", (0, False), "dense")].losses[: len(STEPS)]
    for stage, more in ((2, "dense"), (3, "dense"), (3, "dense checkpointing")):
        found = two[name("fp32", (stage, False), more)]
        assert found.losses[: len(STEPS)] == pytest.approx(expected, abs=1e-3), (stage, more)


@pytest.mark.parametrize(("precision", "stage"), UNROUNDED)
def test_what_is_not_trained_is_saved_unrounded(two: dict[str, Seen], home: Path, tiny: Tiny, precision: str, stage: int) -> None:
    written = weights.read(home / f"{name(precision, (stage, False), 'fid')} x2.safetensors")
    frozen = {key: tensor for key, tensor in weights.named(made("fid", tiny, checkpointing=False)).items() if key.startswith("retriever.")}
    assert frozen and any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in frozen.values())
    for key, tensor in frozen.items():
        assert torch.equal(written[key], tensor), key


@pytest.mark.parametrize(("world", "stage"), [(1, 2), (2, 3)])
def test_training_in_halves_starts_from_unrounded_weights(two: dict[str, Seen], home: Path, tiny: Tiny, world: int, stage: int) -> None:
    written = weights.read(home / f"{name('bf16', (stage, False), 'fresh')} x{world}.safetensors")
    start = weights.named(made("fid", tiny, checkpointing=False))
    assert written.keys() == start.keys()
    for key, tensor in start.items():
        assert torch.equal(written[key], tensor), key


def test_a_gradient_that_is_not_finite_changes_nothing(one: dict[str, Seen], two: dict[str, Seen]) -> None:
    for seen, precision, stage in ((one, "fp32", 0), (two, "fp32", 2), (two, "fp32", 3), (two, "bf16", 1), (two, "bf16", 3)):
        found = seen[not_finite(precision, stage).name]
        assert found.applied == [True, False, True, True]
        assert found.losses[2:] == seen[name(precision, (stage, False))].losses[1:3], (precision, stage)


def test_the_loss_scale_is_kept(two: dict[str, Seen]) -> None:
    """An overflow is borne once before the scale falls: that it was is part of the state."""
    whole, rest = two[name("fp16", (2, False), "overflow")], two[name("fp16", (3, False), "from overflow")]
    assert whole.applied == [True, False, True, True]
    assert whole.scaler == [4096.0, 4.0, 1.0, 1.0] == rest.scaler
    assert rest.losses == pytest.approx(whole.losses[2:], abs=TOLERANCES["fp16"])


def test_an_overflow_at_the_smallest_scale_says_so(back: dict[str, Seen]) -> None:
    found = back[name("fp16", (2, False), "smallest")]
    assert "hardware.precision=fp32" in found.error and found.applied == []
