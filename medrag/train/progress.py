"""What a person sees while it trains: one line; and what stays: ``log.jsonl`` and TensorBoard's files."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from medrag import files
from medrag.schedule import Task
from medrag.train.checkpoints import State


class Progress:
    """The first rank's line and logs; nothing on the others. A resumed run drops what was logged after its checkpoint."""

    def __init__(self, folder: Path, task: Task, state: State, steps: int, device: torch.device, shown: bool) -> None:
        self.state, self.device, self.shown = state, device, shown
        self.bar = tqdm(
            total=steps, initial=state.step, desc=f"training {task.method}", unit=" steps", disable=not shown, file=sys.stderr, mininterval=1
        )
        self.started = time.monotonic()
        if not shown:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        kept = [row for row in files.read_jsonl(path) if row["step"] <= state.step] if path.is_file() else []
        files.write_jsonl(path, kept)
        self.stream = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=state.step)

    def step(self, loss: float, learning_rate: float, units: float) -> None:
        """A step has been taken; ``units`` are what its mean loss was over, all ranks together."""
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.3f}", best="-" if self.state.best == -math.inf else f"{self.state.best:.3f}")
        self.write(loss=loss, learning_rate=learning_rate, units=units)

    def write(self, **values: float) -> None:
        """Log values of the step that the run stands at."""
        if not self.shown:
            return
        row = {"step": self.state.step, "seconds": round(time.monotonic() - self.started, 2), **values}
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, self.state.step)

    def note(self, words: str) -> None:
        """Say something above the line."""
        if self.shown:
            tqdm.write(words, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        if self.shown:
            self.stream.close()
            self.board.close()


def peak_memory_gib(device: torch.device) -> float:
    """Of the card on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
