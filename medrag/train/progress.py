"""What a person sees while it trains: one line; and what stays: ``log.jsonl`` and TensorBoard's files."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import torch

from medrag import files
from medrag.methods import Batch
from medrag.schedule import Task
from medrag.train import checkpoints
from medrag.train.checkpoints import State

LOG = "log.jsonl"
BOARD = "tensorboard"
ROOM_BYTES = 2**20
"""of disk that is asked for before each row: TensorBoard writes later, and says so in a traceback where it cannot"""
REDRAWN_SECONDS = 0.5
"""between two looks of the line on a terminal"""
TOLD_SECONDS = 30.0
"""between two lines where stderr is no terminal, and between two entries of speed and memory in the log"""
SMOOTHED_STEPS = 20
"""steps whose mean loss is shown"""
PACE_STEPS = 50
"""steps that speed is measured over"""
PREFIX = "validation/"
"""what the names of measures begin with in the log"""


class Pace:
    """Speed of late and time left. ``seconds`` is a clock of the whole run that the caller reads; validations stand apart from steps."""

    def __init__(self, steps: int, every: int, step: int, seconds: float, validation_seconds: list[float]) -> None:
        self.steps, self.every, self.validated, self.validation_seconds = steps, every, step, validation_seconds
        self.between = 0.0
        self.marks = deque([(step, seconds, 0, 0)], maxlen=PACE_STEPS + 1)

    def step(self, step: int, seconds: float, examples: int, tokens: int) -> None:
        """A step of so many examples and tokens has ended."""
        _, _, past_examples, past_tokens = self.marks[-1]
        self.marks.append((step, seconds - self.between, past_examples + examples, past_tokens + tokens))

    def validation(self, step: int, took_seconds: float) -> None:
        """One has ended that took so long."""
        self.validated = step
        self.between += took_seconds
        self.validation_seconds.append(took_seconds)

    def per_second(self) -> tuple[float, float]:
        """Examples and tokens, in training alone."""
        (_, since, examples, tokens), (_, now, all_examples, all_tokens) = self.marks[0], self.marks[-1]
        took = max(now - since, 1e-9)
        return (all_examples - examples) / took, (all_tokens - tokens) / took

    def left(self) -> tuple[float, bool]:
        """Seconds until all is done, and whether validations are in them: before the first nobody knows how long one takes."""
        (first, since, _, _), (last, now, _, _) = self.marks[0], self.marks[-1]
        training = (self.steps - last) * (now - since) / max(last - first, 1)
        ahead = self.steps // self.every - self.validated // self.every + (self.steps % self.every != 0 and self.validated < self.steps)
        known = bool(self.validation_seconds) or not ahead
        return training + (ahead * sum(self.validation_seconds) / len(self.validation_seconds) if ahead and known else 0.0), known


class Line:
    """A line that is written over on a terminal; elsewhere (a file, CI) a new one now and then."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.terminal = stream, stream.isatty()
        self.shown = ""
        self.drawn_seconds = -math.inf

    def due(self, now_seconds: float) -> bool:
        """Whether it is time for another look."""
        return now_seconds - self.drawn_seconds >= (REDRAWN_SECONDS if self.terminal else TOLD_SECONDS)

    def draw(self, words: str, now_seconds: float) -> None:
        self.drawn_seconds = now_seconds
        if words == self.shown:
            return
        self.shown = words
        if self.terminal:
            # one column stays free: some terminals wrap when the last is written to
            width = shutil.get_terminal_size((120, 24)).columns - 1
            self.stream.write(f"\r{words[:width]}\x1b[K")
        else:
            self.stream.write(words + "\n")
        self.stream.flush()

    def say(self, words: str) -> None:
        """Something that stays, above the line."""
        again, self.shown = self.shown, ""
        self.stream.write(f"\r\x1b[K{words}\n" if self.terminal else words + "\n")
        if self.terminal and again:
            self.draw(again, self.drawn_seconds)
        self.stream.flush()

    def end(self) -> None:
        """The cursor goes below what was drawn."""
        if self.terminal and self.shown:
            self.stream.write("\n")
            self.stream.flush()


class Progress:
    """The first rank's line and logs; nothing on the others. A resumed run drops what was logged after its checkpoint.

    ``seconds`` in the log are those of the whole run, whatever interrupted it.
    """

    def __init__(self, folder: Path, task: Task, state: State, steps: int, every: int, device: torch.device, shown: bool) -> None:
        self.folder, self.state, self.task, self.steps, self.every, self.device, self.shown = folder, state, task, steps, every, device, shown
        self.started = time.monotonic()
        if not shown:
            return
        from torch.utils.tensorboard import SummaryWriter

        kept = _kept(folder / LOG, state.step)
        with checkpoints.writing(LOG, folder, folder, ROOM_BYTES):
            with files.replacing(folder / LOG) as partial:
                files.write_jsonl(partial, kept)
            self.stream = open(folder / LOG, "a", encoding="utf-8")  # noqa: SIM115
            self.board = SummaryWriter(str(folder / BOARD), purge_step=state.step)
        self.started -= max((row["seconds"] for row in kept), default=0.0)
        self.measure = next((name for row in kept for name in row if name.startswith(PREFIX)), "").removeprefix(PREFIX)
        validations = [row["validation_seconds"] for row in kept if "validation_seconds" in row]
        self.pace = Pace(steps, every, state.step, self._seconds(), validations)
        self.paced_seconds = time.monotonic()
        self.line = Line(sys.stderr)
        done = f", {state.step} of them done" if state.step else ""
        curves = shlex.join(["tensorboard", "--logdir", str(folder / BOARD)])
        self.line.say(f"training {task.method}: {steps} steps of {task.global_batch} examples{done}, a validation every {every}; curves: {curves}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.shown:
            self.line.draw(self._words(f"{clock(self._seconds())} in all"), time.monotonic())
            self.line.end()
            with contextlib.suppress(OSError):  # a full disk has been told of, and a row was written when it was logged
                self.stream.close()
                self.board.close()

    def step(self, loss: float, learning_rate: float, units: float, tokens: float, taken: bool) -> None:
        """A step has ended; ``units`` are what its mean loss (nats) was over, ``tokens`` what it read and wrote, all ranks together.

        One that was not ``taken`` was skipped by ``guard``, or its gradient overflowed fp16 and DeepSpeed has lowered the loss scale.
        """
        if not self.shown:
            return
        self.pace.step(self.state.step, self._seconds(), self.task.global_batch, round(tokens))
        if self.state.skipped_in_a_row:
            self.write(skipped=self.state.skipped, **({"skipped_loss": loss} if math.isfinite(loss) else {}))
        else:
            self.write(loss=loss, learning_rate=learning_rate, units=units, **({} if taken else {"overflowed": 1}))
        now = time.monotonic()
        validating = self.state.step % self.every == 0 or self.state.step == self.steps
        if validating and self.line.terminal:
            self.line.draw(self._words("validating"), now)
        elif self.line.due(now):
            self.line.draw(self._words(), now)
        if now - self.paced_seconds >= TOLD_SECONDS:
            self.write(**self._pace())

    def validated(self, score: float, measured: Mapping[str, float], took_seconds: float) -> None:
        """A validation has ended; the first of what it ``measured`` is the criterion, whose value ``score`` is."""
        if not self.shown:
            return
        self.measure = next(iter(measured))
        self.pace.validation(self.state.step, took_seconds)
        named = {PREFIX + name: value for name, value in measured.items()}
        self.write(validation=score, validation_seconds=round(took_seconds, 2), **named, **self._pace())
        if self.line.terminal:
            self.line.draw(self._words(), time.monotonic())

    def write(self, **values: float) -> None:
        """Log values of the step that the run stands at."""
        if not self.shown:
            return
        row = {"step": self.state.step, "seconds": round(self._seconds(), 2), **values}
        with checkpoints.writing(LOG, self.folder, self.folder, ROOM_BYTES):
            self.stream.write(json.dumps(row) + "\n")
            self.stream.flush()
            for name, value in values.items():
                self.board.add_scalar(name, value, self.state.step)

    def note(self, words: str) -> None:
        """Say something above the line."""
        if self.shown:
            self.line.say(words)

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _pace(self) -> dict[str, float]:
        """What the log is told of speed and memory."""
        self.paced_seconds = time.monotonic()
        examples, tokens = self.pace.per_second()
        speed = {"examples_per_second": round(examples, 2), **({"tokens_per_second": round(tokens, 1)} if tokens else {})}
        return {**speed, "memory_gib": round(peak_memory_gib(self.device), 3)}

    def _words(self, ending: str = "") -> str:
        """The line; it ends with the time left, a plus where validations, of which none has been timed, come on top."""
        left_seconds, all_of_it = self.pace.left()
        ending = ending or f"{clock(left_seconds)}{'' if all_of_it else '+'} left"
        return words(self.state, self.steps, self.measure, self.pace.per_second(), peak_memory_gib(self.device), ending)


def words(state: State, steps: int, measure: str, per_second: tuple[float, float], memory_gib: float, ending: str) -> str:
    """The line: at most 120 columns, what matters most first."""
    recent = state.recent[-SMOOTHED_STEPS:]
    parts = [f"step {state.step}/{steps}", f"loss {sum(recent) / len(recent):.3f}" if recent else "loss -"]
    if state.best > -math.inf:
        minus = measure == "minus_nats"
        best = f"dev {-state.best:.3f} nats" if minus else f"{measure or 'score'} {state.best:.3f}"
        parts.append(f"best {best} at {state.best_step}")
    examples, tokens = per_second
    parts.append(f"{_rounded(tokens)} tokens/s" if tokens else f"{_rounded(examples)} examples/s")
    parts += [f"{memory_gib:.1f} GiB", ending]
    if state.skipped:
        parts.append(f"{state.skipped} skipped")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """``H:MM:SS``"""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def count_tokens(batch: Batch) -> int:
    """What a micro batch reads and writes without padding: the places that its masks hold, and its targets, whose padding is 0 in mT5.

    0 where it has no mask: such a method looks up what it reads in its forward pass.
    """
    read = [int(tensor.sum()) for name, tensor in batch.tensors.items() if "mask" in name]
    written = [int((tensor != 0).sum()) for name, tensor in batch.tensors.items() if name.startswith("target")]
    return sum(read) + sum(written) if read else 0


def peak_memory_gib(device: torch.device) -> float:
    """Of the card on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _rounded(rate: float) -> str:
    return f"{rate / 1000:.0f}k" if rate >= 100_000 else f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def _kept(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows up to a step; a row that a kill or a full disk has cut short ends them."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] <= step:
                rows.append(row)
    return rows
