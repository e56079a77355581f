"""A generator that answers in lower precision: weights and activations in 16 bits, or linear maps in 8."""

from __future__ import annotations

import torch

from medrag import quantized
from medrag.generator import Generator
from medrag.generator.stepping import joined
from medrag.quantized import Int8Linear

PRECISIONS = ("auto", "fp32", "bf16", "int8")


def check(precision: str) -> None:
    """Raise ValueError where there is no such precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"answer.precision={precision!r}; allowed: {', '.join(PRECISIONS)}")


@torch.no_grad()
def lower(generator: Generator, precision: str) -> None:
    """Have a generator that will not be trained again answer in another precision; ``auto`` is fp32.

    int8: the encoder, and the decoder as it writes token by token. What is scored as a whole text, as rag_sequence's hypotheses are, is scored
    in fp32. Raises ValueError where the device cannot do it.
    """
    check(precision)
    device = next(generator.parameters()).device
    if precision == "bf16":
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            raise ValueError("answer.precision=bf16 needs a card of compute capability 8.0")
        generator.bfloat16()
    if precision == "int8":
        if device.type != "cpu":
            raise ValueError("answer.precision=int8 runs on a CPU only; on a card fp32 and bf16 are allowed")
        generator.joined = joined(generator.network, Int8Linear)
        quantized.lower(generator.network.encoder)
