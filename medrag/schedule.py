"""What is asked of a training run, and which examples and which learning rate make up each of its steps: no card, no DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medrag.hardware import Hardware


@dataclass
class Task:
    """What is asked for: the method and its optimisation."""

    method: str = "dense"
    options: Any = None
    """the method's own Config"""
    global_batch: int = 24
    """examples an optimizer step, all devices together"""
    epochs: float = 40.0
    learning_rate: float = 2e-5
    """highest rate, after the warm-up; then linear decay to 0"""
    warmup_share: float = 0.05
    """of all steps"""
    weight_decay: float = 0.01
    """AdamW's, on matrices only"""
    clip: float = 1.0
    """largest norm of the gradient"""
    validate_every_steps: int = 0
    """0: once an epoch"""
    validate_examples: int = 512
    """development examples used while training"""
    patience: int = 5
    """validations without a new best before training stops early; 0 never stops"""
    save_every_minutes: float = 5.0
    """between checkpoints"""
    exploded_above: float = 5.0
    """a loss above this multiple of what was usual of late (the median of 50 steps, or 1 nat where that is less) counts as exploded, and its step
    is skipped; above 1, or 0: no finite loss is skipped"""
    most_skipped: int = 10
    """steps skipped in a row, for losses that exploded or are not finite, at which training stops"""
    start: str = ""
    """trained method whose encoder or generator this one starts from: dense from mlm or dense, what writes from span_corruption, closed_book or its
    like; empty: from model.*.pretrained, or random weights"""


@dataclass(frozen=True, slots=True)
class Room:
    """What a device holds activations of at once; 0: any number."""

    examples: int = 0
    tokens: int = 0
    """padding included"""


@dataclass(frozen=True, slots=True)
class Shares:
    """How a global batch is cut."""

    micro: int
    """examples that a device takes in one forward pass"""
    accumulation: int
    """forward passes of a step"""
    room: Room = Room()
    """what a forward pass that takes a device's whole share may hold activations of at once"""


def shares(task: Task, hardware: Hardware, whole_batch: bool) -> Shares:
    """Micro batch and accumulation: the fewest equal pieces that fit. Raises ValueError where the global batch cannot be shared out.

    A method that contrasts the whole batch takes its share in one forward pass, and cuts it itself by what there is room for.
    """
    if task.global_batch < 1 or task.global_batch % hardware.devices:
        allowed = [number for number in range(1, task.global_batch + 1) if task.global_batch % number == 0]
        raise ValueError(f"task.global_batch={task.global_batch} is not divisible by hardware.devices={hardware.devices}; allowed devices: {allowed}")
    per_device = task.global_batch // hardware.devices
    most = hardware.micro_batch.get(task.method, hardware.micro_batch.get("default", 8))
    if most < 1:
        raise ValueError(f"hardware.micro_batch.{task.method}={most}; it must be 1 or more")
    if whole_batch:
        return Shares(per_device, 1, Room(most, hardware.micro_tokens))
    accumulation = next(pieces for pieces in range(1, per_device + 1) if per_device % pieces == 0 and per_device // pieces <= most)
    return Shares(per_device // accumulation, accumulation)


def check(task: Task) -> None:
    """Raise ValueError where a number is out of range."""
    for name, value, least in (
        ("weight_decay", task.weight_decay, 0),
        ("clip", task.clip, 0),
        ("validate_every_steps", task.validate_every_steps, 0),
        ("validate_examples", task.validate_examples, 0),
        ("patience", task.patience, 0),
        ("save_every_minutes", task.save_every_minutes, 0),
        ("most_skipped", task.most_skipped, 1),
    ):
        if not value >= least:
            raise ValueError(f"task.{name}={value}; it must be {least} or more")
    for name, value in (("epochs", task.epochs), ("learning_rate", task.learning_rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"task.{name}={value}; it must be above 0")
    if not 0 <= task.warmup_share <= 1:
        raise ValueError(f"task.warmup_share={task.warmup_share}; it must be 0 to 1")
    if task.exploded_above and not task.exploded_above > 1:
        raise ValueError(f"task.exploded_above={task.exploded_above}; allowed: a multiple above 1, or 0 for no finite loss")


class Sampler:
    """Which examples make up which step: a function of the step alone, so there is no position to lose.

    Each epoch is a new permutation; within stretches of it examples of like length go together, and the batches are shuffled again.
    """

    STRETCH_BATCHES = 32

    def __init__(self, lengths: Sequence[int], global_batch: int, seed: int) -> None:
        if len(lengths) < global_batch:
            raise ValueError(f"{len(lengths)} training examples are fewer than task.global_batch={global_batch}")
        self.lengths = torch.tensor(lengths)
        self.global_batch = global_batch
        self.seed = seed
        self.steps_per_epoch = len(lengths) // global_batch
        self._epoch = -1
        self._batches = torch.empty(0)

    def batch(self, step: int) -> list[int]:
        """Example numbers of one global batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.lengths), generator=draw)[: self.steps_per_epoch * self.global_batch]
            size = self.STRETCH_BATCHES * self.global_batch
            stretches = [order[start : start + size] for start in range(0, len(order), size)]
            order = torch.cat([stretch[self.lengths[stretch].argsort(stable=True)] for stretch in stretches])
            self._batches = order.view(self.steps_per_epoch, -1)[torch.randperm(self.steps_per_epoch, generator=draw)]
            self._epoch = epoch
        chosen: list[int] = self._batches[place].tolist()
        return chosen


def rate(task: Task, step: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up, then linear decay to 0."""
    warmup = max(1, round(task.warmup_share * steps))
    return task.learning_rate * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
