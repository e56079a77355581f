"""The training loop: sharing out, sampling, ranks against one process, resuming against an undisturbed run, warnings that stop it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from commands import DENSE, ROOT, TINY, copy_of, losses, medrag

from medrag import hardware as machine
from medrag import train
from medrag.hardware import Hardware
from medrag.schedule import Room, Sampler, Shares, Task, rate, shares
from medrag.train import checkpoints

CHUNKS = {
    "whole": ["hardware.devices=1"],
    "ranks and chunks": ["hardware.devices=2", "hardware.micro_tokens=48", "hardware.zero_stage=2"],
}


def test_ranks_and_chunks_learn_what_one_process_learns_at_once(corpus: Path, tmp_path: Path) -> None:
    """The batch is contrasted as a whole whatever devices it is shared out to, in whatever chunks and at whatever ZeRO stage."""
    runs = {}
    for name, cut in CHUNKS.items():
        store = copy_of(corpus, tmp_path / name)
        settings = [f"store={store}", *cut, "task.global_batch=16", "task.epochs=2", "task.options.title_share=1", "task.options.symmetric=0.5"]
        done = medrag("train", *settings, *DENSE, *TINY, "task.options.negatives=0")
        assert done.returncode == 0, done.stderr
        runs[name] = losses(store)
    assert len(runs["whole"]) >= 8
    for name, found in runs.items():
        assert found == pytest.approx(runs["whole"], abs=2e-4), name
    assert runs["whole"][max(runs["whole"])] < runs["whole"][1]


def test_a_killed_run_goes_on_as_if_undisturbed(corpus: Path, tmp_path: Path) -> None:
    settings = [
        "hardware.devices=1",
        "task.global_batch=16",
        "task.epochs=4",
        "task.save_every_minutes=0",
        *DENSE,
        *TINY,
        "task.options.mine_every_epochs=0.5",
    ]
    whole, broken = copy_of(corpus, tmp_path / "whole"), copy_of(corpus, tmp_path / "broken")
    assert medrag("train", f"store={whole}", *settings).returncode == 0
    command = [sys.executable, "-m", "medrag", "train", f"store={broken}", *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not list(broken.glob("runs/*/checkpoints/step-00000005")):
            pass
    finally:
        process.kill()
        process.wait()
    assert not (broken / "dense" / "CURRENT").exists()
    again = medrag("train", f"store={broken}", *settings)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr
    assert losses(broken) == losses(whole)
    hashes = {store: json.loads(next(store.glob("dense/v*/MANIFEST.json")).read_text())["files"]["weights.safetensors"] for store in (whole, broken)}
    assert hashes[whole] == hashes[broken]
    third = medrag("train", f"store={broken}", *settings)
    assert third.returncode == 0 and "already trained" in third.stderr
    assert len(list(broken.glob("dense/v*"))) == 1


def test_a_damaged_checkpoint_is_passed_over(corpus: Path, tmp_path: Path) -> None:
    store = copy_of(corpus, tmp_path / "store")
    settings = [f"store={store}", "hardware.devices=1", "task.global_batch=16", "task.epochs=1", "task.save_every_minutes=0", *DENSE, *TINY]
    assert medrag("train", *settings).returncode == 0
    subprocess.run(["rm", "-r", str(store / "dense")], check=True)
    newest = max(store.glob("runs/*/checkpoints/step-*"))
    weights = newest / checkpoints.TENSORS
    weights.write_bytes(weights.read_bytes()[:-1])
    again = medrag("train", *settings)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr and newest.name not in re.findall(r"going on from (\S+)", again.stderr)[0]


def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(corpus: Path, tmp_path: Path) -> None:
    store = copy_of(corpus, tmp_path / "store")
    settings = ["hardware.devices=1", "task.global_batch=16", "task.epochs=3", "task.learning_rate=1e30", "task.clip=0", "task.warmup_share=0"]
    done = medrag("train", f"store={store}", *settings, *[word for word in DENSE if "learning_rate" not in word], *TINY)
    assert done.returncode == 2
    assert "loss of step" in done.stderr and "task.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("batch", "devices", "most", "expected"),
    [(24, 1, 24, Shares(24, 1)), (24, 2, 8, Shares(6, 2)), (16, 2, 8, Shares(8, 1)), (16, 1, 5, Shares(4, 4)), (7, 1, 3, Shares(1, 7))],
)
def test_shares_are_the_fewest_equal_pieces(batch: int, devices: int, most: int, expected: Shares) -> None:
    cut = shares(Task(global_batch=batch), Hardware(devices=devices, micro_batch={"default": most}), whole_batch=False)
    assert cut == expected
    assert cut.micro * cut.accumulation * devices == batch


def test_shares_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"global_batch=16 is not divisible by hardware.devices=3; allowed devices: \[1, 2, 4, 8, 16\]"):
        shares(Task(global_batch=16), Hardware(devices=3), whole_batch=False)
    with pytest.raises(ValueError, match=r"micro_batch.dense=0; it must be 1 or more"):
        shares(Task(global_batch=16), Hardware(micro_batch={"dense": 0}), whole_batch=True)


def test_a_batch_that_is_contrasted_as_a_whole_is_never_accumulated() -> None:
    hardware = Hardware(devices=2, micro_batch={"default": 8, "dense": 24}, micro_tokens=4096)
    assert shares(Task(global_batch=512), hardware, whole_batch=True) == Shares(256, 1, Room(24, 4096))


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        (Hardware(precision="fp8"), "allowed: fp32, fp16, bf16"),
        (Hardware(precision="fp16"), "needs a GPU"),
        (Hardware(device="cuda", precision="fp16", compute_capability=6.1), "compute capability 7.0"),
        (Hardware(device="cuda", precision="bf16", compute_capability=7.5), "compute capability 8.0"),
        (Hardware(zero_stage=7), "allowed: 0, 1, 2, 3"),
        (Hardware(devices=0), "1 or more"),
        (Hardware(micro_tokens=-1), "micro_tokens=-1; it must be 0 or more"),
        (Hardware(device="tpu"), "allowed: cpu, cuda"),
    ],
)
def test_hardware_that_cannot_be_is_refused(hardware: Hardware, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        machine.check(hardware)


def test_an_epoch_is_a_permutation_and_a_step_is_a_function() -> None:
    sampler = Sampler([number % 7 for number in range(103)], 10, seed=3)
    first = [sampler.batch(step) for step in range(10)]
    assert len({number for batch in first for number in batch}) == 100
    assert [Sampler([number % 7 for number in range(103)], 10, seed=3).batch(step) for step in (9, 0, 4)] == [first[9], first[0], first[4]]
    assert [sampler.batch(step) for step in range(10, 20)] != first
    spread = [max(batch) - min(batch) for batch in ([number % 7 for number in numbers] for numbers in first)]
    assert sum(spread) / len(spread) <= 2
    with pytest.raises(ValueError, match="fewer than"):
        Sampler([1, 2], 3, seed=0)


def test_the_rate_warms_up_and_decays() -> None:
    task = Task(learning_rate=1.0, warmup_share=0.1)
    rates = [rate(task, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.02


def test_deepspeed_is_told_what_was_asked() -> None:
    told = train.deepspeed_config(Task(global_batch=16, clip=0.5), Hardware(devices=2, precision="bf16", zero_stage=1), Shares(4, 2))
    assert (told["train_batch_size"], told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (16, 4, 2)
    assert told["bf16"]["enabled"] and not told["fp16"]["enabled"]
    assert told["zero_optimization"]["stage"] == 1 and told["gradient_clipping"] == 0.5
    assert math.isclose(told["zero_optimization"]["reduce_bucket_size"], 5e6)
