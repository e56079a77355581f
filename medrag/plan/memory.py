"""What a device holds in training, part by part: the method's own, as traced, and what DeepSpeed (0.19) adds, as it was measured to.

The formulas are those of Rajbhandari et al. 2020 (ZeRO), table 1, and of what DeepSpeed makes beside: buckets, flat copies, the optimizer's copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medrag.hardware import Hardware, stage_run
from medrag.plan.tracing import GRADIENTS, WEIGHTS, Traced

PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "encoder",
    "generator encoder",
    "decoder",
    "logits",
    "other activations",
    "index",
    "buffers",
    "context",
)
"""in the order in which they are drawn"""
BACKWARD, STEP = "backward pass", "optimizer step"
CONTEXT_BYTES = {"cpu": 0, "cuda": 700 * 2**20}
"""CUDA's context and libraries, 0.5 to 0.8 GiB"""
ADAM_COPIES = {"cpu": 2, "cuda": 1}
"""of what it steps that torch's AdamW makes for as long: one operation after the other on a CPU, over lists on a card"""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one device, at the moment when most is held."""

    parts: dict[str, int]
    """bytes by PARTS"""
    moment: str
    """backward pass, or optimizer step"""

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


class Sharing:
    """What ZeRO does with gradients as soon as they are whole: into a bucket they go, and from there into this device's share.

    A gradient larger than the bucket waits as it is until the next one comes.
    """

    def __init__(self, buckets: int, bucket_elements: int, share_elements: int, stay: bool) -> None:
        """``buckets`` of ``bucket_elements``, and room for ``share_elements``, are made when they are first needed; ``stay``: gradients stay too."""
        self.buckets, self.bucket_elements, self.share_elements, self.stay = buckets, bucket_elements, share_elements, stay
        self.made: list[Tensor] = []
        self.waiting: list[Tensor] = []
        self.filled = 0

    def __call__(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        self._make(self.buckets * self.bucket_elements, parameter.dtype)
        self.buckets = 0
        if self.stay:
            return
        size = parameter.grad.numel()
        if self.filled and self.filled + size > self.bucket_elements:
            self.waiting.clear()
            self.filled = 0
            self._make(self.share_elements, parameter.dtype)
            self.share_elements = 0
        self.filled += size
        if size > self.bucket_elements:
            self.waiting.append(parameter.grad)
        parameter.grad = None

    def _make(self, elements: int, kind: torch.dtype) -> None:
        if elements:
            self.made.append(torch.empty(elements, dtype=kind))


def accumulates(hardware: Hardware, accumulation: int) -> bool:
    """Whether the parameters' own gradients are there when a step's last micro batch begins."""
    return accumulation > 1 and stage_run(hardware) < 2


def sharing(trained: Sequence[int], hardware: Hardware, bucket_elements: int, accumulation: int) -> Sharing | None:
    """What becomes of gradients in the backward pass; None where nothing does. ``trained``: elements of each trained parameter."""
    if stage_run(hardware) == 0:
        return None
    stay = stage_run(hardware) == 1 and not _overlapped(hardware)
    kept = 0 if stay or stage_run(hardware) == 3 or hardware.offload else sum(trained) // hardware.devices
    there = stage_run(hardware) == 3 or accumulates(hardware, accumulation)
    return Sharing(0 if there else 1 + _overlapped(hardware), bucket_elements, kept, stay)


def predict(
    traced: Traced, trained: Sequence[int], frozen: Sequence[int], hardware: Hardware, bucket_elements: int, accumulation: int, together: bool
) -> Memory:
    """The larger of the two moments.

    ``trained`` and ``frozen``: elements of each parameter; ``bucket_elements``: of a bucket of gradients; ``together``: whether ZeRO 3 gathers all
    weights at once, as for methods that contrast the whole batch.
    """
    zero, on_card = stage_run(hardware), hardware.device == "cuda"
    all_elements, width = sum(trained) + sum(frozen), 4 if hardware.precision == "fp32" else 2
    share = sum(trained) // hardware.devices if zero else sum(trained)
    weights, gathered = traced.parts[WEIGHTS], 0
    if zero == 3:
        weights -= width * (all_elements - all_elements // hardware.devices)
        gathered = width * (all_elements if together else min(all_elements, max(bucket_elements, *trained, *frozen)))
    if not on_card:
        weights += 4 * sum(frozen)  # what is not trained is kept as it was, on the machine
    bucket = width * bucket_elements if zero == 3 else width * bucket_elements * (1 + _overlapped(hardware)) if zero else 0
    optimizer = (12 if zero else 8) * share
    moments = [
        # accumulated gradients: ZeRO 2 makes room for each micro batch's, ZeRO 3 has it from the start
        (
            BACKWARD,
            gathered,
            width * share * (zero == 3 or (zero == 2 and accumulation > 1)),
            bucket * (zero == 3 or accumulates(hardware, accumulation)),
        ),
        # all gradients in one piece, to be summed over devices (later AdamW makes no more); under ZeRO in fp32, and then AdamW's copies
        (STEP, 0, traced.gradient_bytes, 4 * share)
        if not zero
        else (STEP, 0, (width + 4) * share, 4 * share * ADAM_COPIES[hardware.device] + bucket * (zero == 3)),
    ]
    if hardware.offload and on_card:  # the step is the machine's; what has been gathered goes there through room for the largest gradient
        optimizer = 0
        moments = [(BACKWARD, gathered, 0, bucket + width * max(trained)), (STEP, 0, 0, bucket)]
    elif hardware.offload:
        optimizer += (4 + width) * share
        moments = [(name, more, gradients, buffers + 2 * width * max(trained)) for name, more, gradients, buffers in moments]
    found = []
    for moment, more, gradients, buffers in moments:
        held = traced.parts if moment == BACKWARD else {}
        own = {WEIGHTS: weights + more, GRADIENTS: held.get(GRADIENTS, 0) + gradients, "optimizer": optimizer, "buffers": buffers}
        parts = held | own | {"context": CONTEXT_BYTES[hardware.device]}
        found.append(Memory({name: parts.get(name, 0) for name in PARTS}, moment))
    return max(found, key=lambda memory: memory.total_bytes)


def _overlapped(hardware: Hardware) -> bool:
    """Whether gradients are summed over devices while the backward pass goes on, through two buckets in turn."""
    return hardware.device == "cuda" and hardware.devices > 1
