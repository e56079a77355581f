"""Losses that are not finite or explode: caught, written out, their steps skipped, and in the end the run is stopped.

What is judged is the mean loss of the whole batch, summed over all ranks, against losses that the checkpoint holds: so all ranks decide alike, and
a resumed run as one that was never stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medrag import files
from medrag.hardware import Hardware
from medrag.schedule import Task
from medrag.train.checkpoints import State
from medrag.types import Example

USUAL_STEPS = 50
"""good steps whose median is what is usual of late"""
LEAST_STEPS = 5
"""good steps before anything is usual"""
LEAST_NATS = 1.0
"""what is usual at the least: losses near 0 differ by large factors from batch to batch, and a right answer that has become e times less likely
is no explosion"""
MOST_FILES = 100
"""files of skipped batches that a run's folder holds of each rank"""
HOME = "skipped"


def bad_loss(loss: float, state: State, task: Task) -> str:
    """Why the step of this mean loss (nats) must not be taken, in words for a person; empty where it may."""
    if not math.isfinite(loss):
        return f"the loss of step {state.step + 1} is {loss}"
    if task.exploded_above and len(state.recent) >= LEAST_STEPS:
        usual = max(statistics.median(state.recent), LEAST_NATS)
        if loss > task.exploded_above * usual:
            return f"the loss of step {state.step + 1} is {loss:.4g}, more than {task.exploded_above:g} times the usual {usual:.4g}"
    return ""


def bad_gradient(state: State, hardware: Hardware) -> str:
    """The same of a step whose loss was good and that was not taken for its gradient; empty under fp16, whose scale is found by overflows."""
    return "" if hardware.precision == "fp16" else f"the gradient of step {state.step + 1} is not finite"


def learn(loss: float, reason: str, state: State) -> None:
    """Have ``state`` know of a step and of the reason, where there was one, why it was not taken."""
    if reason:
        state.skipped += 1
        state.skipped_in_a_row += 1
    else:
        state.skipped_in_a_row = 0
        state.recent = [*state.recent, loss][-USUAL_STEPS:]


def write(folder: Path, step: int, rank: int, loss: float, reason: str, examples: Sequence[Example]) -> str:
    """Keep this rank's share of the batch of a step in ``folder/skipped/step-XXXXXXXX-rankR.jsonl`` and return what to tell a person.

    A folder that holds ``MOST_FILES`` of a rank takes no more.
    """
    home = folder / HOME
    home.mkdir(exist_ok=True)
    path = home / f"step-{step:08d}-rank{rank}.jsonl"
    if not path.exists() and len(list(home.glob(f"step-*-rank{rank}.jsonl"))) >= MOST_FILES:
        return f"{reason}; the step is skipped ({home} is full)"
    # JSON has no number for what is not finite
    files.write_jsonl(path, ({"step": step, "loss": loss if math.isfinite(loss) else str(loss), **asdict(example)} for example in examples))
    return f"{reason}; the step is skipped, its batch is in {path}"


def stop_if_hopeless(reason: str, state: State, task: Task, hardware: Hardware, folder: Path) -> None:
    """Raise ValueError, on all ranks alike, where as many steps in a row were skipped as ``task`` allows."""
    if state.skipped_in_a_row < task.most_skipped:
        return
    kept = sorted((folder / "checkpoints").glob("step-*"))
    advice = [f"a task.learning_rate below {task.learning_rate:g}", f"a task.clip below {task.clip:g}" if task.clip else "task.clip=1"]
    if hardware.precision != "fp32":
        advice.append("hardware.precision=fp32" + (", which goes on from there" if kept else ""))
    if "times the usual" in reason:
        advice.append("task.exploded_above=0 where such losses are right")
    raise ValueError(
        f"{reason}; steps skipped in a row: {state.skipped_in_a_row}; their batches: {folder / HOME}; "
        f"newest checkpoint: {kept[-1] if kept else 'none yet'}; try {', or '.join(advice)}"
    )


def worth_validating(state: State, steps: int) -> bool:
    """Whether the weights may be measured: not amid bad steps, whose cause they may be, unless it is the last chance to have any result."""
    return not state.skipped_in_a_row or (state.step == steps and state.best == -math.inf)


def check_result(state: State, folder: Path) -> None:
    """Raise ValueError where a run that is over has no best weights."""
    if state.best == -math.inf:
        raise ValueError(f"no validation of {folder} gave a number; steps skipped: {state.skipped} of {state.step}; try a lower task.learning_rate")
