"""What a device holds in training, part by part: the method's own, as traced, and what DeepSpeed adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medrag.hardware import Hardware
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
CONTEXT_BYTES = {"cpu": 0, "cuda": 700 * 2**20}


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


def predict(traced: Traced, trained: Sequence[int], frozen: Sequence[int], hardware: Hardware) -> Memory:
    """The larger of the two moments; ``trained`` and ``frozen`` are the sizes of the parameters, in elements."""
    count = sum(trained)
    fixed = {"optimizer": 8 * count, "context": CONTEXT_BYTES[hardware.device]}
    step = {WEIGHTS: traced.parts[WEIGHTS], GRADIENTS: traced.gradient_bytes, "buffers": 4 * count}
    moments = [
        Memory({name: (fixed | parts).get(name, 0) for name in PARTS}, moment)
        for moment, parts in (("backward pass", traced.parts), ("optimizer step", step))
    ]
    return max(moments, key=lambda memory: memory.total_bytes)
