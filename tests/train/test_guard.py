"""Bad losses: which count as such, what is kept of them, and what a run with some in its midst comes to."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import DENSE, ROOT, TINY, copy_of, medrag
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st

from medrag import schedule
from medrag.hardware import Hardware
from medrag.schedule import Task
from medrag.train import guard
from medrag.train.checkpoints import State

TASK = Task(exploded_above=5.0, most_skipped=3)


def after(losses: list[float], task: Task = TASK) -> tuple[State, list[str]]:
    """The state that steps of these losses leave, and why each was not taken."""
    state, reasons = State(), []
    for loss in losses:
        reasons.append(guard.bad_loss(loss, state, task))
        guard.learn(loss, reasons[-1], state)
        state.step += 1
    return state, reasons


@given(st.lists(st.floats(0.0, 5.0), min_size=20, max_size=120))
def test_losses_near_zero_may_differ_by_any_factor(losses: list[float]) -> None:
    assert not any(after(losses)[1])


@given(st.floats(0.5, 20.0), st.lists(st.floats(0.7, 1.3), min_size=20, max_size=120), st.floats(0.9, 1.0))
def test_a_loss_that_falls_and_fluctuates_is_good(start: float, noise: list[float], decay: float) -> None:
    assert not any(after([start * decay**step * factor for step, factor in enumerate(noise)])[1])


@given(st.lists(st.floats(0.01, 12.0), min_size=guard.LEAST_STEPS, max_size=80), st.sampled_from([math.nan, math.inf, -math.inf, 61.0, 1e30]))
def test_what_explodes_is_caught_at_any_step_and_leaves_no_trace(losses: list[float], bad: float) -> None:
    task = Task(exploded_above=1e9) if not math.isfinite(bad) else TASK
    state, _ = after(losses, task)
    usual = list(state.recent)
    reason = guard.bad_loss(bad, state, task)
    guard.learn(bad, reason, state)
    assert reason.startswith(f"the loss of step {len(losses) + 1} is ")
    assert state.recent == usual and state.skipped_in_a_row >= 1
    guard.learn(1.0, "", state)
    assert (state.skipped_in_a_row, state.recent[-1]) == (0, 1.0)


def test_what_is_usual_is_of_late() -> None:
    state, reasons = after([9.0] * 100 + [2.0] * 100)
    assert not any(reasons) and len(state.recent) == guard.USUAL_STEPS
    assert "11, more than 5 times the usual 2" in guard.bad_loss(11.0, state, TASK)
    assert not guard.bad_loss(11.0, state, Task(exploded_above=0)) and not guard.bad_loss(9.9, state, TASK)
    resumed = State(**json.loads(json.dumps({"step": state.step, "recent": state.recent})))
    assert guard.bad_loss(11.0, resumed, TASK) == guard.bad_loss(11.0, state, TASK)
    assert not guard.bad_loss(1e6, after([2.0] * (guard.LEAST_STEPS - 1))[0], TASK), "nothing is usual in the first steps"
    assert guard.bad_loss(math.nan, State(), TASK) == "the loss of step 1 is nan"
    assert guard.bad_gradient(state, Hardware()) and not guard.bad_gradient(state, Hardware(precision="fp16"))


def test_a_batch_is_kept_whole_and_not_too_many_of_them(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_FILES", 2)
    for step, loss in ((3, math.nan), (9, 1e6), (3, math.nan), (10, math.inf)):
        told = guard.write(tmp_path, step, 1, loss, "the loss is bad", tiny.examples[:2])
        assert told.startswith("the loss is bad; the step is skipped") and ("is full" in told) == (step == 10)
    assert "step-00000003-rank0" in guard.write(tmp_path, 3, 0, math.nan, "", tiny.examples[2:4]), "other ranks have room of their own"
    names = [f"step-{end}.jsonl" for end in ("00000003-rank0", "00000003-rank1", "00000009-rank1")]
    assert sorted(path.name for path in tmp_path.rglob("*.jsonl")) == names
    rows = [json.loads(line) for line in (tmp_path / "skipped" / "step-00000003-rank1.jsonl").read_text("utf-8").splitlines()]
    assert [(row["id"], row["question"], row["answers"], row["loss"], row["step"]) for row in rows] == [
        (example.id, example.question, list(example.answers), "nan", 3) for example in tiny.examples[:2]
    ]
    assert '"loss": 1000000.0' in (tmp_path / "skipped" / "step-00000009-rank1.jsonl").read_text("utf-8")


@pytest.mark.parametrize(
    ("reason", "task", "precision", "checkpoint", "words"),
    [
        ("the loss is nan", TASK, "fp32", "", "newest checkpoint: none yet; try a task.learning_rate below 2e-05, or a task.clip below 1"),
        (
            "the loss is inf",
            Task(clip=0, most_skipped=3),
            "fp16",
            "step-00000300",
            "checkpoints/step-00000300; try a task.learning_rate below 2e-05, or task.clip=1, or hardware.precision=fp32, which goes on from there",
        ),
        (
            "it is 9, more than 5 times the usual 1",
            TASK,
            "fp32",
            "step-00000300",
            "step-00000300; try a task.learning_rate below 2e-05, or a task.clip below 1, or task.exploded_above=0 where such losses are right",
        ),
    ],
)
def test_the_last_words_say_what_to_do(reason: str, task: Task, precision: str, checkpoint: str, words: str, tmp_path: Path) -> None:
    for name in filter(None, (checkpoint, checkpoint and "step-00000200")):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    hardware = Hardware(precision=precision)
    guard.stop_if_hopeless(reason, State(skipped=9, skipped_in_a_row=2), task, hardware, tmp_path)
    with pytest.raises(ValueError, match="steps skipped in a row: 3") as raised:
        guard.stop_if_hopeless(reason, State(skipped=9, skipped_in_a_row=3), task, hardware, tmp_path)
    told = str(raised.value)
    assert told.startswith(reason) and "\n" not in told and f"batches: {tmp_path / 'skipped'};" in told
    assert told.endswith(words)


@pytest.mark.parametrize(
    ("in_a_row", "step", "best", "worth"),
    [(0, 5, -math.inf, True), (1, 5, -math.inf, False), (1, 9, 0.5, False), (1, 9, -math.inf, True), (0, 9, 0.5, True)],
)
def test_weights_are_not_measured_amid_bad_steps(in_a_row: int, step: int, best: float, worth: bool) -> None:
    assert guard.worth_validating(State(step=step, best=best, skipped_in_a_row=in_a_row), 9) == worth


def test_a_run_without_a_result_says_so(tmp_path: Path) -> None:
    guard.check_result(State(best=-3.0), tmp_path)
    with pytest.raises(ValueError, match=r"no validation .* gave a number; steps skipped: 4 of 9"):
        guard.check_result(State(step=9, skipped=4), tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"exploded_above": 1.0}, "task.exploded_above=1.0; allowed: a multiple above 1, or 0"),
        ({"exploded_above": -2.0}, "task.exploded_above=-2.0; allowed"),
        ({"exploded_above": math.nan}, "task.exploded_above=nan; allowed"),
        ({"most_skipped": 0}, "task.most_skipped=0; it must be 1 or more"),
        ({"clip": -1.0}, "task.clip=-1.0; it must be 0 or more"),
        ({"clip": math.nan}, "task.clip=nan; it must be 0 or more"),
        ({"epochs": 0.0}, "task.epochs=0.0; it must be above 0"),
        ({"learning_rate": math.inf}, "task.learning_rate=inf; it must be above 0"),
        ({"warmup_share": 1.5}, "task.warmup_share=1.5; it must be 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schedule.check(Task(**values))
    schedule.check(Task(exploded_above=0.0, clip=0.0, warmup_share=0.0, patience=0))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``poisoned.py`` says of its cases."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, str(Path(__file__).with_name("poisoned.py")), str(tmp_path_factory.mktemp("poisoned"))]
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", ["healthy", "nan", "huge", "gradient"])
def test_a_bad_batch_leaves_the_run_as_if_its_step_had_been_left_out(seen: dict[str, Any], case: str) -> None:
    """torch's own AdamW, which leaves out the same step, comes to the same weights."""
    skipped = {"healthy": [], "nan": [7], "huge": [17], "gradient": [7]}[case]
    found = seen[case]
    assert not found["error"] and [row["step"] for row in found["rows"] if "skipped" in row] == skipped
    assert (found["state"]["step"], found["state"]["skipped"], found["state"]["skipped_in_a_row"]) == (25, len(skipped), 0)
    assert found["apart"] < 1e-3 < abs(found["sum"] - seen["healthy"]["sum"]) + (case == "healthy")
    assert [row["step"] for row in found["rows"] if "loss" in row] == [step for step in range(1, 26) if step not in skipped]


def test_the_reference_would_notice_a_step_that_is_taken(seen: dict[str, Any]) -> None:
    """The same explosion within the first steps, when nothing is usual yet, is taken, and the weights are others."""
    assert not seen["huge at first"]["state"]["skipped"] and seen["huge at first"]["apart"] > 1e-2


@pytest.mark.parametrize("case", ["killed after", "killed later"])
def test_a_resumed_run_skips_what_the_undisturbed_one_skips(seen: dict[str, Any], case: str) -> None:
    """Whether the kill came before the skipped step was in a checkpoint or after."""
    whole, found = seen["nan"], seen[case]
    assert found["sum"] == whole["sum"] and found["state"]["recent"] == whole["state"]["recent"] and found["state"]["skipped"] == 1
    for key in ("loss", "skipped", "validation"):
        assert [(row["step"], row[key]) for row in found["rows"] if key in row] == [(row["step"], row[key]) for row in whole["rows"] if key in row]
    times = [row["seconds"] for row in found["rows"]]
    assert times == sorted(times)


def test_the_newest_checkpoint_is_from_before_the_trouble(seen: dict[str, Any]) -> None:
    found = seen["hopeless"]
    assert found["error"].startswith("the loss of step 14 is nan; steps skipped in a row: 3; their batches: ")
    assert found["checkpoint"].endswith("step-00000011") and found["checkpoint"] in found["error"]
    assert found["state"]["skipped"] == 0
    assert len(list(Path(found["checkpoint"]).parents[1].glob("skipped/*.jsonl"))) == 3


def test_two_devices_give_up_with_one_line(corpus: Path, tmp_path: Path) -> None:
    store = copy_of(corpus, tmp_path / "store")
    settings = ["hardware.devices=2", "task.global_batch=16", "task.learning_rate=1e30", "task.clip=0", "task.warmup_share=0", "task.most_skipped=2"]
    done = medrag("train", f"store={store}", *settings, *[word for word in DENSE if "learning_rate" not in word], *TINY)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("medrag: ")]
    assert "steps skipped in a row: 2" in line and "task.learning_rate" in line
    assert {path.name[-11:] for path in store.glob("runs/*/skipped/*")} == {"rank0.jsonl", "rank1.jsonl"}
